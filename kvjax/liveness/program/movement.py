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
from kvjax.liveness.program.scalars import Shape, Tensor, Tensors

Array = np.ndarray
Params = dict[str, Any]


def move(primitive: Any, params: Params, ins: Tensors) -> Tensor | None:
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
  function: Callable[[Sequence[Array]], Array], ins: Tensors
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
  shape = params['shape']
  axes = params['broadcast_dimensions']
  # NumPy aligns the last axes; these axes of size 1 bring the others there.
  missing = [axis for axis in range(len(shape)) if axis not in axes]
  return np.broadcast_to(np.expand_dims(arrays[0], missing), shape)


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


def _indexed(primitive: Any, params: Params, ins: Tensors) -> Tensor | None:
  """Runs the primitive itself on flat indices to learn what goes where.

  So the modes of JAX for indices out of bounds need no second description.
  """
  moved = ins[: _INDEXED[primitive.name]]
  indices = [t.const for t in ins[len(moved) :]]
  if primitive.name == 'gather':
    source = gather_source(params, moved[0].shape, indices[0])
  else:
    arrays = map(jax.numpy.asarray, (*_flat_indices(moved), *indices))
    source = np.asarray(primitive.bind(*arrays, **params))
  return _pick(source, moved, params.get('fill_value'))


def _flat_indices(moved: Tensors) -> list[Array]:
  """Returns numbers for the entries of all tensors, in the tensors' shapes."""
  starts = np.cumsum([0] + [t.ids.size for t in moved])
  return [
    np.arange(start, start + t.ids.size, dtype=np.int32).reshape(t.shape)
    for start, t in zip(starts, moved, strict=False)
  ]


def gather_source(params: Params, shape: Shape, indices: Any) -> Array:
  """Returns for every result of a gather the flat index read; -1: outside."""
  flat = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
  source = jax.lax.gather_p.bind(
    jax.numpy.asarray(flat),
    jax.numpy.asarray(indices),
    **(params | {'fill_value': -1}),
  )
  return np.asarray(source)


def _scatter(params: Params, ins: Tensors) -> Tensor:
  operand, indices, updates = ins
  moved = [operand, updates]
  flat_operand, flat_updates = _flat_indices(moved)
  source = jax.lax.scatter(
    flat_operand,
    indices.const,
    flat_updates,
    params['dimension_numbers'],
    indices_are_sorted=params['indices_are_sorted'],
    unique_indices=params['unique_indices'],
    mode=params['mode'],
  )
  return _pick(np.asarray(source), moved, None)


def _pick(source: Array, moved: Tensors, fill: Any) -> Tensor:
  """Returns the entries numbered `source`; -1 is the fill value."""
  dtype = np.asarray(moved[0].const).dtype
  if fill is None:
    fill = np.nan if jax.numpy.issubdtype(dtype, np.inexact) else 0
  # The fill value comes last, where the index -1 reads it.
  blank = scalars.constant(np.asarray(fill).astype(dtype))
  return move_together(
    lambda arrays: np.concatenate([a.reshape(-1) for a in arrays])[source],
    [*moved, blank],
  )
