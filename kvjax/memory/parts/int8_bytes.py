"""Elements of the weights that `quantize` turns into codes, and their lines."""

import collections
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kvjax.layers.norm import Norm
from kvjax.memory.parts.lines import Line
from kvjax.memory.parts.param_bytes import TABLES, active_elements
from kvjax.mesh.rules import WHOLE, Partition
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import init_layers
from kvjax.models.param_axes import axes_of
from kvjax.models.quantize import PROJECTIONS

SCALE = 4  # bytes of a line's float32 scale, or of a block's scale and zero
BLOCK = 32  # elements of a block of codes of four bits


class Coded(NamedTuple):
  """Elements of codes, and lines or blocks of them, each with numbers."""

  codes: int
  lines: int
  bits: int = 8

  @property
  def code_bytes(self) -> int:
    return self.codes * self.bits // 8

  @property
  def number_bytes(self) -> int:
    return SCALE * (self.lines if self.bits == 8 else self.codes // BLOCK)

  @property
  def bytes(self) -> int:
    return self.code_bytes + self.number_bytes


def coded_parts(
  config: ModelConfig,
  cut: Partition = WHOLE,
  *,
  bits: int = 8,
  active: bool = False,
) -> dict[str, Coded]:
  """Returns what is coded, by the names of the lines of `param_lines`.

  Args:
    config: the model.
    cut: what one device of a mesh holds.
    bits: of a code: 8 or 4.
    active: count the experts that one token visits, not all.
  """
  found: dict[str, Any] = collections.defaultdict(lambda: Coded(0, 0, bits))
  (vocab,) = cut.local_shape(['vocab'], [config.vocab_size])
  found[TABLES] = Coded(vocab * config.width, vocab, bits)
  stacks = [(layer, '', cut) for layer in config.layers]
  if config.encoder is not None and not active:
    stacks += [(layer, 'encoder', WHOLE) for layer in config.encoder.layers]
  for layer, stack, parts in stacks:
    for name, more in _layer_parts(layer, config.width, parts, active):
      name = stack or ('layers' if parts.devices > 1 else name)
      have = found[name]
      found[name] = Coded(
        have.codes + more.codes, have.lines + more.lines, bits
      )
  return dict(found)


def coded_lines(parts: dict[str, Coded]) -> Iterator[Line]:
  """Yields two lines a part: its codes, and the scales of its lines."""
  for name, part in parts.items():
    count = part.number_bytes // SCALE
    numbers = f'{part.codes} x {part.bits / 8:g}', f'{count} x {SCALE}'
    yield Line(
      'params', f'codes of {name}', part.code_bytes, 'elements', numbers[0]
    )
    size, unit = part.number_bytes, 'lines' if part.bits == 8 else 'blocks'
    yield Line('params', f'scales of {name}', size, f'{unit} bytes', numbers[1])


def active_bytes(config: ModelConfig, size: int, *, bits: int | None) -> int:
  """Returns bytes of parameters that a step of one token reads.

  Args:
    config: the model.
    size: bytes of an element that is not coded.
    bits: of a code, where projections are coded; None elsewhere.
  """
  parts = coded_parts(config, bits=bits, active=True).values() if bits else ()
  rest = active_elements(config) - sum(part.codes for part in parts)
  return rest * size + sum(part.bytes for part in parts)


@functools.lru_cache(maxsize=256)
def _layer_parts(
  layer: Layer, width: int, cut: Partition, active: bool
) -> tuple[tuple[str, Coded], ...]:
  init = functools.partial(  # norms are not coded: any
    init_layers, (layer,), Norm(), width=width, dtype=jnp.float32
  )
  (leaves,) = jax.eval_shape(init, jax.random.key(0))
  mlp: Any = layer.mlp
  experts = hasattr(mlp, 'num_experts')
  found = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
    keys = [key.key for key in path]
    if keys[-1] not in PROJECTIONS:
      continue
    axes = axes_of(keys, layer)
    parts = cut.parts(*zip(*axes, strict=True)) if axes else []
    sizes = list(leaf.shape)
    for i, count in enumerate(parts):
      sizes[i] //= count
    if active and len(sizes) == 3:
      sizes[0] = mlp.top
    name = keys[0] if keys[0] == 'mlp' else 'attention'
    name = 'experts' if name == 'mlp' and experts else name
    found.append((name, Coded(math.prod(sizes), math.prod(sizes[:-1]))))
  return tuple(found)
