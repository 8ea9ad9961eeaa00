"""Which mesh axes split which named axes of params, cache and activations.

After the logical axis rules of t5x and MaxText. An axis of an array is split by
the longest prefix of its mesh axes whose sizes divide it, so one set of rules
says, for example, that weights are split in 16 and 8 kv heads in 8.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import AbstractMesh, PartitionSpec

from kvjax.arguments import is_whole

MeshAxes = str | tuple[str, ...] | None
"""Names of mesh axes, the major one first; None for what follows from others,
`()` for an axis that no mesh axis splits."""


FIELDS = (
  'batch',
  'heads',
  'kv_heads',
  'hidden',
  'vocab',
  'experts',
  'slots',
)
FOLLOW_HEADS = ('kv_heads', 'hidden', 'vocab')


def _axes(name: str, value: Any) -> tuple[str, ...]:
  """Returns mesh axes as a tuple; ValueError for what names none."""
  axes = (value,) if isinstance(value, str) else value
  is_tuple = isinstance(axes, tuple | list)
  if not is_tuple or not all(isinstance(axis, str) for axis in axes):
    raise ValueError(
      f'{name}={value!r} must name a mesh axis, or be a tuple of names.'
    )
  if len(set(axes)) != len(axes):
    raise ValueError(f'{name}={value!r} names a mesh axis twice.')
  return tuple(axes)


@dataclasses.dataclass(frozen=True)
class Rules:
  """For each named axis the mesh axes that split it, the major one first.

  Attributes:
    batch: rows of the cache. Activations are split by those of these mesh axes
      that no weight is split by.
    heads: query heads, and what follows from them (Megatron-LM, arXiv
      1909.08053).
    kv_heads: heads of keys and values; None for those of `heads` that do not
      split slots.
    hidden: hidden units of MLPs and experts; None for those of `heads`.
    vocab: rows of embedding and head; None for those of `heads`.
    experts: experts. Hidden units are split by what is left.
    slots: slots of a cache, the context (Helix, arXiv 2507.07120). Pages are
      cut alike: every device holds a part of every page.
  """

  batch: MeshAxes = ()
  heads: MeshAxes = ()
  kv_heads: MeshAxes = None
  hidden: MeshAxes = None
  vocab: MeshAxes = None
  experts: MeshAxes = ()
  slots: MeshAxes = ()

  def __post_init__(self):
    for name in FIELDS:
      value = getattr(self, name)
      follows = value is None and name in FOLLOW_HEADS
      object.__setattr__(self, name, None if follows else _axes(name, value))
    # Leaves of one cache would be split differently, by what comes out even.
    for name in ('batch', 'kv_heads'):
      both = [axis for axis in self[name] if axis in self['slots']]
      if both:
        raise ValueError(
          f'{name}={self[name]} and slots={self["slots"]} share the mesh axis '
          f'{both[0]!r}. Give slots a mesh axis that splits neither rows nor '
          'kv heads.'
        )

  def __getitem__(self, axis: str) -> tuple[str, ...]:
    """Returns the mesh axes of a named axis; none for an unknown name.

    Three names follow from the fields: `rows` of activations, which no mesh
    axis of a weight splits, `query_heads` at the slots that they read, and
    `expert_hidden` of experts that are split over devices.
    """
    if axis == 'rows':  # of activations
      return tuple(x for x in self['batch'] if x not in self.weight_axes)
    if axis == 'query_heads':  # as they read slots
      taken = (*self['batch'], *self['slots'])
      return tuple(x for x in self['heads'] if x not in taken)
    if axis == 'expert_hidden':
      return tuple(x for x in self['hidden'] if x not in self['experts'])
    mesh_axes = getattr(self, axis) if axis in FIELDS else ()
    if mesh_axes is not None:
      return mesh_axes
    without = self['slots'] if axis == 'kv_heads' else ()
    return tuple(x for x in self['heads'] if x not in without)

  @property
  def mesh_axes(self) -> tuple[str, ...]:
    """All mesh axes that the rules name."""
    return tuple(dict.fromkeys(a for name in FIELDS for a in self[name]))

  @property
  def weight_axes(self) -> tuple[str, ...]:
    """The mesh axes that split weights of layers."""
    names = 'heads', 'hidden', 'experts'
    return tuple(dict.fromkeys(axis for name in names for axis in self[name]))


BY_NAME = Rules(batch='batch', heads='heads', experts='experts', slots='slots')
"""The rules of a mesh whose axes have the names of what they split."""


@dataclasses.dataclass(frozen=True)
class Partition:
  """A mesh and its rules: what one device holds. Hashable.

  Attributes:
    mesh: axes and their sizes.
    rules: what they split.
  """

  mesh: AbstractMesh
  rules: Rules

  @property
  def devices(self) -> int:
    return self.size(self.mesh.axis_names)

  @property
  def slot_parts(self) -> int:
    """How many devices share the slots of a row."""
    return self.size(self.rules['slots'])

  def size(self, mesh_axes: Sequence[str]) -> int:
    """Returns how many devices some mesh axes have; 1 for an absent axis."""
    return math.prod(self.mesh.shape.get(axis, 1) for axis in mesh_axes)

  def axes(
    self, names: Sequence[str], sizes: Sequence[int], taken: Sequence[str] = ()
  ) -> tuple[tuple[str, ...], ...]:
    """Returns the mesh axes that split each axis of an array.

    No mesh axis splits two axes of one array: the earlier axis has it.

    Args:
      names: of the axes.
      sizes: of the axes, or of the units of them that stay together.
      taken: mesh axes that split none of them.
    """
    used = set(taken)
    found = []
    for name, size in zip(names, sizes, strict=True):
      mesh_axes = []
      for axis in self.rules[name]:
        if axis not in self.mesh.shape or axis in used:
          continue
        if size % self.mesh.shape[axis]:
          break
        size //= self.mesh.shape[axis]
        mesh_axes.append(axis)
      used.update(mesh_axes)
      found.append(tuple(mesh_axes))
    return tuple(found)

  def parts(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """Returns into how many parts each axis is split."""
    return [self.size(axes) for axes in self.axes(names, sizes)]

  def local_shape(
    self, names: Sequence[str], sizes: Sequence[int]
  ) -> list[int]:
    """Returns the shape of one device's part of an array."""
    parts = self.parts(names, sizes)
    return [size // count for size, count in zip(sizes, parts, strict=True)]

  def spec(self, names: Sequence[str], sizes: Sequence[int]) -> PartitionSpec:
    """Returns how an array of these axes is split."""
    return spec_of(*self.axes(names, sizes))


def spec_of(*mesh_axes: Sequence[str]) -> PartitionSpec:
  """Returns the spec of an array whose axes are split by these mesh axes."""
  entries = [
    (tuple(axes) if len(axes) > 1 else axes[0]) if axes else None
    for axes in mesh_axes
  ]
  while entries and entries[-1] is None:  # one spelling for each split
    entries.pop()
  return PartitionSpec(*entries)


WHOLE = Partition(AbstractMesh((), ()), Rules())


def partition_of(mesh: Any, rules: Rules | None = None) -> Partition:
  """Returns how a mesh splits what it holds.

  Args:
    mesh: a `jax.sharding.Mesh` or `AbstractMesh`, a mapping of axis names to
      sizes, or None for one device.
    rules: what its axes split; None for `BY_NAME`, where a further mesh axis
      'copies' splits nothing.

  Raises:
    ValueError: the mesh is none, or rules name an axis that it does not have.
  """
  if mesh is None:
    if rules is not None:
      raise ValueError(f'rules={rules} need a mesh: give mesh=, too.')
    return WHOLE
  sizes = _sizes(mesh)
  if rules is None:
    unknown = [x for x in sizes if x not in (*BY_NAME.mesh_axes, 'copies')]
    if unknown:
      raise ValueError(
        f'mesh axis {unknown[0]!r} is unknown; known: '
        f'{", ".join(BY_NAME.mesh_axes)}, copies. Or say what it splits: '
        f'rules=kvjax.sharding.Rules(heads={unknown[0]!r}).'
      )
    rules = Rules(**{name: name for name in BY_NAME.mesh_axes if name in sizes})
  elif not isinstance(rules, Rules):
    raise ValueError(f'rules={rules!r} must be a kvjax.sharding.Rules.')
  else:
    absent = [axis for axis in rules.mesh_axes if axis not in sizes]
    if absent:
      raise ValueError(
        f'rules name the mesh axis {absent[0]!r}, and the mesh has '
        f'{", ".join(sizes) or "none"}. Name one of those, or give the mesh '
        f'an axis {absent[0]!r} of size 1.'
      )
  if not isinstance(mesh, AbstractMesh):
    mesh = getattr(mesh, 'abstract_mesh', None) or AbstractMesh(
      tuple(sizes.values()), tuple(sizes)
    )
  return Partition(mesh, rules)


def _sizes(mesh: Any) -> Mapping[str, int]:
  named = mesh if isinstance(mesh, Mapping) else getattr(mesh, 'shape', None)
  if not isinstance(named, Mapping):
    raise ValueError(
      f'mesh={mesh!r} is no mesh. Give a jax.sharding.Mesh, or sizes by '
      "axis: {'heads': 2}."
    )
  for name, size in named.items():
    if not isinstance(name, str) or not is_whole(size, 1):
      raise ValueError(f'mesh axis {name}={size!r} must be a positive integer.')
  return named


def over_heads(devices: int) -> tuple[dict[str, int], Rules]:
  """Returns a mesh that splits heads as far as they divide, and its rules.

  It has an axis for every prime factor: 8 kv heads on 16 devices are split in
  8, and weights in 16.

  Args:
    devices: of the mesh.

  Raises:
    ValueError: devices is no positive integer.
  """
  if not is_whole(devices, 1):
    raise ValueError(f'devices={devices!r} must be a positive integer.')
  mesh: dict[str, int] = {}
  factor, rest = 2, devices
  while rest > 1:
    if rest % factor:
      factor += 1
      continue
    mesh[f'heads_{len(mesh)}'] = factor
    rest //= factor
  return mesh, Rules(heads=tuple(mesh))
