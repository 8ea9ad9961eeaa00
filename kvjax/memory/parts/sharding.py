"""What one device of a mesh holds: named axes, split where that comes out even.

A mesh axis 'batch' splits rows; 'heads' splits heads, kv heads, the hidden
units of MLPs and the vocabulary (Megatron-LM, arXiv 1909.08053); 'experts'
splits experts, and 'slots' the slots or pages of a cache. An array is split
into as many parts as divide both its axis and the mesh's: 8 kv heads on 16
devices are split in 8 and stored twice; MLA has one latent, which all store.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from kvjax.caches.array_spec import ArraySpec

# Mesh axis -> names of the axes it splits.
SPLITS = {
  'batch': ('batch',),
  'heads': ('heads', 'kv_heads', 'hidden', 'vocab'),
  'experts': ('experts',),
  'slots': ('slots', 'pages'),
}


@dataclasses.dataclass(frozen=True)
class Shards:
  """How many devices share each kind of axis.

  Attributes:
    sizes: `(mesh axis, devices)` pairs.
  """

  sizes: tuple[tuple[str, int], ...] = ()

  @property
  def devices(self) -> int:
    return math.prod(size for _, size in self.sizes)

  def parts(self, axis: str, size: int) -> int:
    """Returns into how many parts an axis of `size` is split."""
    for name, devices in self.sizes:
      if axis in SPLITS[name]:
        return math.gcd(devices, size)
    return 1

  def shape(self, leaf: ArraySpec) -> tuple[int, ...]:
    """Returns the shape of a cache's leaf on one device."""
    paged = 'pages' in leaf.axes
    return tuple(
      size // (1 if paged and axis == 'slots' else self.parts(axis, size))
      for size, axis in zip(leaf.shape, leaf.axes, strict=True)
    )

  def axis(self, axis: str, size: int) -> str | None:
    """Returns the mesh axis that splits an axis of `size`; None for none.

    Raises:
      ValueError: it is split in fewer parts than the mesh axis has devices;
        only a finer mesh can say that.
    """
    parts = self.parts(axis, size)
    if parts == 1:
      return None
    name, devices = next(s for s in self.sizes if axis in SPLITS[s[0]])
    if parts < devices:
      raise ValueError(
        f'{axis}={size} on {devices} devices of mesh axis {name!r} is on '
        f'{devices // parts} times: give the copies a mesh axis of their own.'
      )
    return name

  def spec(self, leaf: ArraySpec) -> jax.sharding.PartitionSpec:
    """Returns how that mesh splits a cache's leaf; raises as `axis`."""
    local = self.shape(leaf)
    axes = zip(leaf.axes, leaf.shape, local, strict=True)
    names = [None if n == part else self.axis(a, n) for a, n, part in axes]
    return jax.sharding.PartitionSpec(*names)


WHOLE = Shards()


def shards(mesh: Any) -> Shards:
  """Returns the shards of a mesh.

  Args:
    mesh: a `jax.sharding.Mesh` or `AbstractMesh`, a mapping of axis names to
      sizes, or None for one device. A further axis 'copies' repeats all.

  Raises:
    ValueError: an axis has another name, or no positive size.
  """
  if mesh is None:
    return WHOLE
  named = mesh if isinstance(mesh, Mapping) else getattr(mesh, 'shape', None)
  if not isinstance(named, Mapping):
    raise ValueError(
      f'mesh={mesh!r} is no mesh. Give a jax.sharding.Mesh, or sizes by '
      "axis: {'heads': 2}."
    )
  sizes: Mapping[str, int] = named
  for name, size in sizes.items():
    if name not in SPLITS and name != 'copies':
      raise ValueError(
        f'mesh axis {name!r} is unknown; known: {", ".join(SPLITS)}, copies.'
      )
    if not isinstance(size, int) or size < 1:
      raise ValueError(f'mesh axis {name}={size!r} must be a positive integer.')
  kept = {name: size for name, size in sizes.items() if name != 'copies'}
  return Shards(tuple(kept.items()))
