"""One equation at one position: the row that is new, given the past.

At step t of a decoder a tensor is known in up to two forms: its new row, a
block of one axis, and the whole of it, put together from what is kept. A rule
computes the row of a result without the rows before it. An equation without a
rule is computed whole. That is right because the kept tensors separate past
and future: rows that are wrong for lack of a kept past are read by nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.liveness.program import rules
from kvjax.liveness.program.primitives import bind
from kvjax.liveness.program.scalars import Shape

Params = dict[str, Any]


class RowValue(NamedTuple):
  """A tensor at step t; `row` is a block of `axis`, `full` all of it."""

  shape: Shape
  full: jax.Array | None
  row: jax.Array | None = None
  axis: int = 0

  @property
  def block(self) -> int:
    """Returns how much of its axis the row takes up."""
    return 0 if self.row is None else self.row.shape[self.axis]


def whole(value: RowValue, t: jax.Array) -> jax.Array:
  """Returns all of a tensor; rows that nothing kept are zero."""
  if value.full is not None:
    return value.full
  if value.row is None:
    raise ValueError('a tensor of no form.')
  return insert(jnp.zeros(value.shape, value.row.dtype), value, t)


def insert(full: jax.Array, value: RowValue, t: jax.Array) -> jax.Array:
  """Returns `full` with the new row in its place."""
  if value.row is None:
    return full
  start = t * value.block
  return jax.lax.dynamic_update_slice_in_dim(full, value.row, start, value.axis)


def slice_of(
  value: RowValue, axis: int, block: int, t: jax.Array
) -> jax.Array | None:
  """Returns the block of a tensor that belongs to position t along an axis."""
  if value.row is not None and value.axis == axis:
    return value.row if value.block == block else None
  if value.full is None:
    return None
  return jax.lax.dynamic_slice_in_dim(value.full, t * block, block, axis)


def new_rows(
  eqn: Any, ins: Sequence[RowValue], t: jax.Array, admits: Callable[[int], bool]
) -> tuple[list[jax.Array], int] | None:
  """Returns new rows of an equation's results and their axis.

  Args:
    eqn: the equation.
    ins: its operands.
    t: the position.
    admits: whether row t of a product along an axis has all that is new at t.

  Returns:
    None where no rule knows the row.
  """
  name = eqn.primitive.name
  if name == 'dot_general':
    return _dot(eqn, ins, t, admits)
  if name == 'gather':
    return _gather(eqn, ins)
  if all(v.row is None for v in ins):
    return None
  pointwise = name not in _RULES
  if pointwise:
    ins = _broadcast_ins(ins)
  first = next(v for v in ins if v.row is not None)
  if pointwise:
    same = all(v.shape in ((), first.shape) for v in ins)
    small = (eqn.params, first.axis) if same else None
  else:
    small = _RULES[name](eqn.params, first)
  operands = _aligned(ins, first, t)
  if small is None or operands is None:
    return None
  params, axis = small
  return bind(eqn.primitive, params, operands), axis


def _aligned(
  ins: Sequence[RowValue], first: RowValue, t: jax.Array
) -> list[jax.Array] | None:
  """Returns the block of every operand that belongs to the row of `first`."""
  out = []
  for value in ins:
    if value.shape == () and value.full is not None:
      out.append(value.full)
      continue
    if len(value.shape) != len(first.shape):
      return None
    part = slice_of(value, first.axis, first.block, t)
    if part is None:
      return None
    out.append(part)
  return out


def _broadcast_ins(ins: Sequence[RowValue]) -> Sequence[RowValue]:
  """Returns operands of a pointwise equation with axes of size 1 spread out."""
  if len({len(v.shape) for v in ins if v.shape}) > 1:
    return ins
  shape = jnp.broadcast_shapes(*(v.shape for v in ins))
  return [_broadcast_value(v, shape) if v.shape else v for v in ins]


def _broadcast_value(value: RowValue, shape: Shape) -> RowValue:
  full = value.full
  row = value.row
  if full is not None:
    full = jnp.broadcast_to(full, shape)
  if row is not None:
    if value.shape[value.axis] != shape[value.axis]:
      return value  # The axis of size 1 is the axis of the row.
    small = _resized(shape, value.axis, value.block)
    row = jnp.broadcast_to(row, small)
  return RowValue(shape, full, row, value.axis)


def _resized(shape: Shape, axis: int, size: int) -> Shape:
  return (*shape[:axis], size, *shape[axis + 1 :])


# A rule gives the parameters for the row alone, and the axis of the row in the
# result; None where the row of the result needs more than the row.
RowRule = Callable[[Params, RowValue], tuple[Params, int] | None]


def _reduce(params: Params, value: RowValue) -> tuple[Params, int] | None:
  axes = params['axes' if 'axes' in params else 'dimensions']
  if value.axis in axes:
    return None
  return params, value.axis - sum(a < value.axis for a in axes)


def _along(params: Params, value: RowValue) -> tuple[Params, int] | None:
  """Applies to what works along some axes: the row must be along another."""
  keys = ('dimension', 'axis', 'operand_axis', 'dimensions')
  axes = next(params[k] for k in keys if k in params)
  return None if value.axis in np.atleast_1d(axes) else (params, value.axis)


def _broadcast(params: Params, value: RowValue) -> tuple[Params, int] | None:
  axis = params['broadcast_dimensions'][value.axis]
  shape = params['shape']
  if shape[axis] != value.shape[value.axis]:
    return None
  return params | {'shape': _resized(shape, axis, value.block)}, axis


def _reshape(params: Params, value: RowValue) -> tuple[Params, int] | None:
  """Keeps the row a block, if the axes before it keep their size."""
  shape = params['new_sizes']
  before_row = math.prod(value.shape[: value.axis])
  steps = value.shape[value.axis] // value.block
  before = 1
  for axis, size in enumerate(shape):
    if before == before_row and size % steps == 0 and size:
      small = _resized(shape, axis, size // steps)
      return params | {'new_sizes': small}, axis
    before *= size
  return None


def _slice(params: Params, value: RowValue) -> tuple[Params, int] | None:
  axis = value.axis
  strides = params['strides']
  limits = params['limit_indices']
  if (
    params['start_indices'][axis] != 0
    or limits[axis] != value.shape[axis]
    or (strides is not None and strides[axis] != 1)
  ):
    return None
  return params | {'limit_indices': _resized(limits, axis, value.block)}, axis


def _pad(params: Params, value: RowValue) -> tuple[Params, int] | None:
  unchanged = params['padding_config'][value.axis] == (0, 0, 0)
  return (params, value.axis) if unchanged else None


_RULES: dict[str, RowRule] = {
  **dict.fromkeys((*rules.REDUCTIONS, 'squeeze'), _reduce),
  **dict.fromkeys((*rules.ALONG, 'concatenate', 'rev', 'split'), _along),
  **dict.fromkeys(
    """cond conv_general_dilated dynamic_slice dynamic_update_slice fft scatter
    scatter-add scatter_add tile unstack while scan""".split(),
    lambda params, value: None,
  ),
  'broadcast_in_dim': _broadcast,
  'pad': _pad,
  'reshape': _reshape,
  'slice': _slice,
  'stack': lambda p, value: (p, value.axis + (p['axis'] <= value.axis)),
  'transpose': lambda p, value: (p, p['permutation'].index(value.axis)),
}


def _dot(
  eqn: Any, ins: Sequence[RowValue], t: jax.Array, admits: Callable[[int], bool]
) -> tuple[list[jax.Array], int] | None:
  """Returns a row of a product: one operand's row with all of the other."""
  contracted, batch = eqn.params['dimension_numbers']
  for a, value in enumerate(ins):
    if value.row is None or value.axis in contracted[a]:
      continue
    other = ins[1 - a]
    if value.axis in batch[a]:  # Results have batch axes first, in order.
      axis = batch[a].index(value.axis)
      part = slice_of(other, batch[1 - a][axis], value.block, t)
    else:  # Free axes follow, those of the left operand first.
      part = other.full
      free = [
        i
        for i in range(len(value.shape))
        if i not in contracted[a] and i not in batch[a]
      ]
      axis = len(batch[a]) + free.index(value.axis)
      if a == 1:
        left = ins[0].shape
        axis += len(left) - len(contracted[0]) - len(batch[0])
    if part is not None and admits(axis):
      pair = [value.row, part] if a == 0 else [part, value.row]
      return bind(eqn.primitive, eqn.params, pair), axis
  return None


def _gather(
  eqn: Any, ins: Sequence[RowValue]
) -> tuple[list[jax.Array], int] | None:
  """Returns rows of a table by rows of indices."""
  operand, indices = ins
  numbers = eqn.params['dimension_numbers']
  if indices.row is None or operand.full is None:
    return None
  if indices.axis in numbers.start_indices_batching_dims:
    return None  # A row of indices reads a row of the table only.
  if indices.axis == len(indices.shape) - 1:
    return None
  rank = len(indices.shape) - 1 + len(numbers.offset_dims)
  outer = [a for a in range(rank) if a not in numbers.offset_dims]
  values = bind(eqn.primitive, eqn.params, [operand.full, indices.row])
  return values, outer[indices.axis]
