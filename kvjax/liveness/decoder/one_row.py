"""One equation at one position: the row that is new, given the past.

At step t of a decoder a tensor is known in up to two forms: its new row, a
block of one axis, and the whole of it, put together from what is kept. A rule
computes the row of a result without the rows before it; what has no rule is
computed whole, which the separation makes right: nothing of the past but what
is kept matters to the future.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = dict[str, Any]


class Value(NamedTuple):
  """A tensor at step t; `row` is a block of `axis`, `full` all of it."""

  shape: tuple[int, ...]
  full: jax.Array | None
  row: jax.Array | None = None
  axis: int = 0


def whole(value: Value, t: jax.Array) -> jax.Array:
  """All of a tensor; rows that nothing kept are zero."""
  if value.full is not None:
    return value.full
  if value.row is None:
    raise ValueError('a tensor of no form.')
  return insert(jnp.zeros(value.shape, value.row.dtype), value, t)


def insert(full: jax.Array, value: Value, t: jax.Array) -> jax.Array:
  """Puts the new row in its place."""
  if value.row is None:
    return full
  block = value.row.shape[value.axis]
  return jax.lax.dynamic_update_slice_in_dim(
    full, value.row, t * block, value.axis
  )


def slice_of(
  value: Value, axis: int, block: int, t: jax.Array
) -> jax.Array | None:
  """The block of a tensor that belongs to position t along an axis."""
  if value.row is not None and value.axis == axis:
    return value.row if value.row.shape[axis] == block else None
  if value.full is None:
    return None
  return jax.lax.dynamic_slice_in_dim(value.full, t * block, block, axis)


def row(
  primitive: Any,
  params: Params,
  ins: Sequence[Value],
  t: jax.Array,
  admits: Callable[[int], bool],
) -> tuple[list[jax.Array], int] | None:
  """New rows of an equation's results and their axis, or None."""
  if primitive.name == 'dot_general':
    return _dot(primitive, params, ins, t, admits)
  if primitive.name == 'gather':
    return _gather(primitive, params, ins)
  first = next((v for v in ins if v.row is not None), None)
  if primitive.name not in _RULES and first is not None:
    ins = [_widened(v, ins) for v in ins]
    first = next(v for v in ins if v.row is not None)
  if first is None or first.row is None:
    return None
  rule = _RULES.get(primitive.name, _pointwise)
  found = rule(params, first, first.row.shape[first.axis], ins)
  if found is None:
    return None
  params, axis = found
  operands = _aligned(ins, first, t)
  if operands is None:
    return None
  return bind(primitive, params, operands), axis


def _aligned(
  ins: Sequence[Value], first: Value, t: jax.Array
) -> list[jax.Array] | None:
  if first.row is None:
    return None
  out = []
  for value in ins:
    if value.shape == () and value.full is not None:
      out.append(value.full)
      continue
    if len(value.shape) != len(first.shape):
      return None
    part = slice_of(value, first.axis, first.row.shape[first.axis], t)
    if part is None:
      return None
    out.append(part)
  return out


def bind(
  primitive: Any, params: Params, operands: Sequence[jax.Array]
) -> list[jax.Array]:
  extra, bound = (), primitive.get_bind_params(params)
  if isinstance(bound, tuple):
    extra, bound = bound
  out = primitive.bind(*extra, *operands, **bound)
  return list(out) if primitive.multiple_results else [out]


Found = tuple[Params, int] | None


def _pointwise(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  same = all(v.shape in ((), first.shape) for v in ins)
  return (params, first.axis) if same else None


def _widened(value: Value, ins: Sequence[Value]) -> Value:
  """An operand of a pointwise equation, with its axes of size 1 spread out."""
  ranks = {len(v.shape) for v in ins if v.shape}
  if not value.shape or len(ranks) > 1:
    return value
  shape = jnp.broadcast_shapes(*(v.shape for v in ins))
  if shape == value.shape:
    return value
  full, new = value.full, value.row
  if full is not None:
    full = jnp.broadcast_to(full, shape)
  if new is not None:
    if value.shape[value.axis] != shape[value.axis]:
      return value
    block = new.shape[value.axis]
    small = (*shape[: value.axis], block, *shape[value.axis + 1 :])
    new = jnp.broadcast_to(new, small)
  return Value(shape, full, new, value.axis)


def _reduce(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  axes = params['axes']
  if first.axis in axes:
    return None
  return params, first.axis - sum(a < first.axis for a in axes)


def _along(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  """Sorts, top-k, cumulative sums, joins and splits along another axis."""
  keys = ('dimension', 'axis', 'operand_axis')
  axis = next(params[k] for k in keys if k in params)
  return None if axis == first.axis else (params, first.axis)


def _broadcast(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  axis = params['broadcast_dimensions'][first.axis]
  shape = list(params['shape'])
  if shape[axis] != first.shape[first.axis]:
    return None
  shape[axis] = block
  return params | {'shape': tuple(shape)}, axis


def _reshape(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  """The row stays a block when the axes before it keep their size."""
  shape = params['new_sizes']
  lead = 1
  for size in first.shape[: first.axis]:
    lead *= size
  steps = first.shape[first.axis] // block
  before = 1
  for axis, size in enumerate(shape):
    if before == lead and size % steps == 0 and size:
      small = (*shape[:axis], size // steps, *shape[axis + 1 :])
      return params | {'new_sizes': small}, axis
    before *= size
  return None


def _squeeze(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  axes = params['dimensions']
  return params, first.axis - sum(a < first.axis for a in axes)


def _slice(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  axis, size = first.axis, first.shape[first.axis]
  strides = params['strides']
  if (
    params['start_indices'][axis] != 0
    or params['limit_indices'][axis] != size
    or (strides is not None and strides[axis] != 1)
  ):
    return None
  limits = list(params['limit_indices'])
  limits[axis] = block
  return params | {'limit_indices': tuple(limits)}, axis


def _pad(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  still = params['padding_config'][first.axis] == (0, 0, 0)
  return (params, first.axis) if still else None


def _rev(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  return None if first.axis in params['dimensions'] else (params, first.axis)


def _transpose(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  return params, params['permutation'].index(first.axis)


def _stack(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  return params, first.axis + (params['axis'] <= first.axis)


def _never(
  params: Params, first: Value, block: int, ins: Sequence[Value]
) -> Found:
  return None


_RULES: dict[str, Callable[..., Found]] = {
  **dict.fromkeys(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or
    argmax argmin""".split(),
    _reduce,
  ),
  **dict.fromkeys(
    """sort top_k cumsum cummax cummin cumprod cumlogsumexp concatenate
    split""".split(),
    _along,
  ),
  **dict.fromkeys(
    """cond conv_general_dilated dynamic_slice dynamic_update_slice fft scatter
    scatter-add scatter_add tile unstack while scan""".split(),
    _never,
  ),
  'broadcast_in_dim': _broadcast,
  'pad': _pad,
  'reshape': _reshape,
  'rev': _rev,
  'slice': _slice,
  'squeeze': _squeeze,
  'stack': _stack,
  'transpose': _transpose,
}


def _dot(
  primitive: Any,
  params: Params,
  ins: Sequence[Value],
  t: jax.Array,
  admits: Callable[[int], bool],
) -> tuple[list[jax.Array], int] | None:
  """A row of a product: one side's row with all of the other."""
  contracted, batch = params['dimension_numbers']
  for a, value in enumerate(ins):
    if value.row is None or value.axis in contracted[a]:
      continue
    other = ins[1 - a]
    if value.axis in batch[a]:
      place = batch[a].index(value.axis)
      block = value.row.shape[value.axis]
      part = slice_of(other, batch[1 - a][place], block, t)
      axis = place
    else:
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
      return bind(primitive, params, pair), axis
  return None


def _gather(
  primitive: Any, params: Params, ins: Sequence[Value]
) -> tuple[list[jax.Array], int] | None:
  """Rows of a table by rows of indices."""
  operand, indices = ins
  numbers = params['dimension_numbers']
  if indices.row is None or indices.axis == len(indices.shape) - 1:
    return None
  rank = len(indices.shape) - 1 + len(numbers.offset_dims)
  outer = [a for a in range(rank) if a not in numbers.offset_dims]
  pairs = zip(
    numbers.operand_batching_dims,
    numbers.start_indices_batching_dims,
    strict=True,
  )
  table = operand.full
  for mine, theirs in pairs:
    if theirs == indices.axis:
      table = operand.row if operand.axis == mine else None
  if table is None:
    return None
  values = bind(primitive, params, [table, indices.row])
  return values, outer[indices.axis]
