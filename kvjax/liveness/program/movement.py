"""Primitives that only move scalars.

A mover takes the operands' arrays and a primitive's parameters and gives the
result's array. It runs on the numbers, on the constants and on the offsets of
the operands, and makes no new scalar.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.liveness.program import primitives, scalars
from kvjax.liveness.program.scalars import Shape, Tensor

Array = np.ndarray
Params = dict[str, Any]


def move(
  primitive: Any, params: Params, ins: Sequence[Tensor]
) -> Tensor | None:
  """Returns the moved tensor; None when the primitive does more than move."""
  name = primitive.name
  if any(primitives.is_extended(t.const) for t in ins):
    return None
  if name in _PLAIN:
    return move_together(lambda arrays: _PLAIN[name](arrays, params), ins)
  if name == 'scatter' and ins[1].fixed:
    return _scatter(params, ins)
  if name in _INDEXED and all(t.fixed for t in ins[_INDEXED[name] :]):
    return _indexed(primitive, params, ins)
  return None


def move_together(
  function: Callable[[Sequence[Array]], Array], ins: Sequence[Tensor]
) -> Tensor:
  """Applies one movement of several tensors to numbers, values and offsets."""
  offset = None
  if any(t.offset is not None for t in ins):
    offset = function([offset_of(t) for t in ins])
  return Tensor(
    function([t.ids for t in ins]),
    function([np.asarray(t.const) for t in ins]),
    offset,
  )


def offset_of(tensor: Tensor) -> Array:
  """Returns the constant part of every scalar: all of a constant one."""
  offset = np.zeros(tensor.shape) if tensor.offset is None else tensor.offset
  if not np.issubdtype(np.asarray(tensor.const).dtype, np.number):
    return offset
  return np.where(tensor.is_const, tensor.const, offset)


def _broadcast(arrays: Sequence[Array], params: Params) -> Array:
  shape = [1] * len(params['shape'])
  for axis, size in zip(
    params['broadcast_dimensions'], arrays[0].shape, strict=True
  ):
    shape[axis] = size
  return np.broadcast_to(arrays[0].reshape(shape), params['shape'])


def _slice(arrays: Sequence[Array], params: Params) -> Array:
  starts = params['start_indices']
  limits = params['limit_indices']
  strides = params['strides'] or (1,) * len(starts)
  return arrays[0][tuple(map(slice, starts, limits, strides))]


def _pad(arrays: Sequence[Array], params: Params) -> Array:
  operand, value = arrays
  for axis, (low, high, inner) in enumerate(params['padding_config']):
    size = operand.shape[axis]
    inside = size + inner * max(size - 1, 0)
    shape = list(operand.shape)
    shape[axis] = inside + max(low, 0) + max(high, 0)
    out = np.full(shape, value.reshape(()), operand.dtype)
    # Positive padding first, then negative padding cuts the result.
    lead = (slice(None),) * axis
    begin = max(low, 0)
    out[(*lead, slice(begin, begin + inside, inner + 1))] = operand
    stop = shape[axis] - max(-high, 0)
    operand = out[(*lead, slice(max(-low, 0), stop))]
  return operand


_PLAIN: dict[str, Callable[[Sequence[Array], Params], Array]] = {
  'broadcast_in_dim': _broadcast,
  'concatenate': lambda a, p: np.concatenate(a, p['dimension']),
  'copy': lambda a, p: a[0],
  'copy_p': lambda a, p: a[0],
  'expand_dims': lambda a, p: np.expand_dims(a[0], p['dimensions']),
  'name': lambda a, p: a[0],
  'pad': _pad,
  'pvary': lambda a, p: a[0],
  'reshape': lambda a, p: a[0].reshape(p['new_sizes']),
  'rev': lambda a, p: np.flip(a[0], p['dimensions']),
  'sharding_constraint': lambda a, p: a[0],
  'slice': _slice,
  'stop_gradient': lambda a, p: a[0],
  'stack': lambda a, p: np.stack(a, p['axis']),
  'tile': lambda a, p: np.tile(a[0], p['reps']),
  'squeeze': lambda a, p: np.squeeze(a[0], tuple(p['dimensions'])),
  'transpose': lambda a, p: a[0].transpose(p['permutation']),
}

# How many leading operands are moved; the operands after them are indices.
_INDEXED = {'gather': 1, 'dynamic_slice': 1, 'dynamic_update_slice': 2}


def _indexed(
  primitive: Any, params: Params, ins: Sequence[Tensor]
) -> Tensor | None:
  """Runs the primitive itself on flat indices to learn what goes where.

  So the modes of JAX for indices out of bounds need no second description.
  """
  name = primitive.name
  moved = ins[: _INDEXED[name]]
  starts = np.cumsum([0] + [t.ids.size for t in moved])
  sources = [
    np.arange(start, start + t.ids.size, dtype=np.int32).reshape(t.shape)
    for start, t in zip(starts, moved, strict=False)
  ]
  indices = [jax.numpy.asarray(t.const) for t in ins[len(moved) :]]
  if name == 'gather':
    source = gather_source(params, sources[0].shape, indices[0])
  else:
    arrays = map(jax.numpy.asarray, sources)
    source = np.asarray(primitive.bind(*arrays, *indices, **params))
  return _pick(source, moved, params.get('fill_value'))


def gather_source(params: Params, shape: Shape, indices: Any) -> Array:
  """Returns for every result of a gather the flat index read; -1: outside."""
  flat = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
  source = jax.lax.gather_p.bind(
    jax.numpy.asarray(flat),
    jax.numpy.asarray(indices),
    **(params | {'fill_value': -1}),
  )
  return np.asarray(source)


def _scatter(params: Params, ins: Sequence[Tensor]) -> Tensor:
  operand, indices, updates = ins
  size = operand.ids.size
  source = jax.lax.scatter(
    np.arange(size, dtype=np.int32).reshape(operand.shape),
    indices.const,
    np.arange(size, size + updates.ids.size, dtype=np.int32).reshape(
      updates.shape
    ),
    params['dimension_numbers'],
    indices_are_sorted=params['indices_are_sorted'],
    unique_indices=params['unique_indices'],
    mode=params['mode'],
  )
  return _pick(np.asarray(source), [operand, updates], None)


def _pick(source: Array, moved: Sequence[Tensor], fill: Any) -> Tensor:
  if fill is None:
    dtype = np.asarray(moved[0].const).dtype
    inexact = jax.numpy.issubdtype(dtype, np.inexact)
    fill = np.nan if inexact else 0

  def pick(arrays: Sequence[Array], outside: Any) -> Array:
    flat = np.concatenate([np.asarray(a).reshape(-1) for a in arrays])
    out = flat[np.maximum(source, 0)]
    return np.where(source < 0, np.asarray(outside).astype(out.dtype), out)

  offset = None
  if any(t.offset is not None for t in moved):
    offset = pick([offset_of(t) for t in moved], 0)
  return Tensor(
    pick([t.ids for t in moved], scalars.CONST),
    pick([t.const for t in moved], fill),
    offset,
  )


def scatter_targets(params: Params, ins: Sequence[Tensor]) -> Array:
  """Returns for every update of a scatter-add the flat index it is added to.

  A gather with the same geometry reads what the scatter writes.
  """
  operand, indices, updates = ins
  numbers = params['dimension_numbers']
  gather = jax.lax.GatherDimensionNumbers(
    offset_dims=numbers.update_window_dims,
    collapsed_slice_dims=numbers.inserted_window_dims,
    start_index_map=numbers.scatter_dims_to_operand_dims,
    operand_batching_dims=numbers.operand_batching_dims,
    start_indices_batching_dims=numbers.scatter_indices_batching_dims,
  )
  window = iter(updates.shape[d] for d in numbers.update_window_dims)
  dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
  sizes = [
    1 if axis in dropped else next(window) for axis in range(len(operand.shape))
  ]
  flat = np.arange(operand.ids.size, dtype=np.int32).reshape(operand.shape)
  return np.asarray(
    jax.lax.gather(
      flat,
      indices.const,
      gather,
      sizes,
      mode=jax.lax.GatherScatterMode.FILL_OR_DROP,
      fill_value=-1,
    )
  )
