"""Primitives that are written in smaller ones before they are recorded.

A cumulative sum becomes its recurrence: the future reads one row of the sum,
not all summands. A convolution becomes windows, which only move scalars, and a
product.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import core

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import folding, movement, rules, scalars
from kvjax.liveness.program.scalars import Shape, Tensor, Tensors
from kvjax.liveness.program.trace import Equation, Recording

Array = np.ndarray
Params = dict[str, Any]


def lower(
  recorder: Recording, equation: Equation, ins: Tensors
) -> list[Tensor] | None:
  """Returns the results by smaller primitives; None where there are none."""
  name = equation.name
  params = equation.params
  if name in rules.CUMULATIVE:
    return _recurrence(recorder, equation, ins[0])
  if name == 'conv_general_dilated':
    return [_convolution(recorder, equation, ins)]
  if name == 'split':
    edges = np.cumsum(params['sizes'])[:-1]
    return [
      ins[0].moved(lambda a, i=i: np.split(a, edges, params['axis'])[i])
      for i in range(len(params['sizes']))
    ]
  if name == 'unstack':  # Since JAX 0.12 an array is unpacked by it.
    axis = params['axis']
    count = range(ins[0].shape[axis])
    return [ins[0].moved(lambda a, i=i: np.take(a, i, axis)) for i in count]
  if name == 'reduce_max' and ins[0].offset is not None:
    kept = _without_masked(ins[0], ins[0].offset, tuple(params['axes']))
    return recorder.record_mixed(equation, [kept])
  if name in ('scatter-add', 'scatter_add') and ins[1].fixed:
    return _add_at(recorder, equation, ins)
  if name == 'optimization_barrier':
    return list(ins)
  return None


def _without_masked(
  operand: Tensor, offset: Array, axes: tuple[int, ...]
) -> Tensor:
  """Returns the operand of a maximum, without the scores under a mask.

  A masked score is not the greatest while some score is not masked.
  """
  far = offset < -folding.FAR
  near = ~operand.is_const & ~far
  hidden = far & ~operand.is_const & near.any(axes, keepdims=True)
  const = np.where(hidden, -np.inf, np.asarray(operand.const))
  dtype = np.asarray(operand.const).dtype
  ids = np.where(hidden, scalars.CONST, operand.ids)
  return Tensor(ids, const.astype(dtype), offset)


def _add_at(
  recorder: Recording, equation: Equation, ins: Tensors
) -> list[Tensor] | None:
  """Writes a scatter-add by fixed indices as a sum; None if places repeat."""
  operand, indices, updates = ins
  zeros = scalars.constant(np.zeros_like(np.asarray(operand.const)))
  placed = movement.move(
    jax.lax.scatter_p, equation.params, [zeros, indices, updates]
  )
  if placed is None or np.sum(~placed.is_const) < updates.ids.size:
    return None
  add = dataclasses.replace(equation, primitive=jax.lax.add_p, params={})
  return recorder.apply(add, [operand, placed])


def _recurrence(
  recorder: Recording, equation: Equation, operand: Tensor
) -> list[Tensor] | None:
  """Writes out[i] = out[i - 1] (+) x[i], along an axis of different times.

  None where all rows are of one time: such a sum is within a position.
  """
  axis = equation.params['axis']
  reverse = equation.params['reverse']
  ready = scalars.lookup(recorder.table.available, operand.ids)
  if not np.any(ready.min(axis) != ready.max(axis)):
    return None
  rows = [
    operand.moved(lambda a, i=i: np.take(a, [i], axis))
    for i in range(operand.shape[axis])
  ]
  rows = rows[::-1] if reverse else rows
  first = rows[0]
  if equation.name in _PAIRWISE:
    # The first row is made like the others, so that all rows are one tensor.
    neutral = _PAIRWISE[equation.name][1]
    blank = np.full_like(np.asarray(first.const), neutral)
    first = _next_row(recorder, equation, scalars.constant(blank), first)
  out = [first]
  for row in rows[1:]:
    out.append(_next_row(recorder, equation, out[-1], row))
  return [_join(out[::-1] if reverse else out, axis)]


_PAIRWISE = {
  'cumsum': (jax.lax.add_p, 0),
  'cummax': (jax.lax.max_p, -(2.0**31)),
  'cummin': (jax.lax.min_p, 2.0**31 - 1),
  'cumprod': (jax.lax.mul_p, 1),
}


def _next_row(
  recorder: Recording, equation: Equation, before: Tensor, row: Tensor
) -> Tensor:
  dtype = np.asarray(row.const).dtype
  if equation.name in _PAIRWISE:
    primitive, _ = _PAIRWISE[equation.name]
    avals = [core.ShapedArray(row.shape, dtype)]
    pairwise = dataclasses.replace(
      equation, primitive=primitive, params={}, avals=avals
    )
    (out,) = recorder.apply(pairwise, [before, row])
    return out
  # log(exp(a) + exp(b)) is no primitive: a cumulative sum of two rows is.
  axis = equation.params['axis']
  pair = _join([before, row], axis)
  two = dataclasses.replace(
    equation,
    params=equation.params | {'reverse': False},
    avals=[core.ShapedArray(pair.shape, dtype)],
  )
  (out,) = recorder.record_mixed(two, [pair])
  return out.moved(lambda a: np.take(a, [1], axis))


def _join(parts: Tensors, axis: int) -> Tensor:
  return movement.move_together(lambda a: np.concatenate(a, axis), parts)


def _convolution(
  recorder: Recording, equation: Equation, ins: Tensors
) -> Tensor:
  """Writes windows [groups, batch * places, taps] times kernels."""
  params = equation.params
  aval = equation.avals[0]
  if params['batch_group_count'] != 1:
    raise AnalysisError(f'batch_group_count > 1: {equation.origin.text}.')
  numbers = params['dimension_numbers']
  groups = params['feature_group_count']
  lhs = ins[0].moved(lambda a: np.transpose(a, numbers.lhs_spec))
  rhs = ins[1].moved(lambda a: np.transpose(a, numbers.rhs_spec))
  batch = lhs.shape[0]
  outer, depth, *kernel = rhs.shape
  index = _windows(lhs.shape, kernel, params)  # [places, taps], -1 outside
  places, taps = index.shape

  def gather(array: Array) -> Array:
    flat = array.reshape(batch, groups, depth, -1)
    # Index -1, padding, reads this last entry: a constant 0.
    blank = scalars.CONST if array.dtype == np.int64 else 0
    flat = np.concatenate([flat, np.full_like(flat[..., :1], blank)], -1)
    flat = flat[..., index].transpose(1, 0, 3, 2, 4)
    return flat.reshape(groups, batch * places, depth * taps)

  kernels = rhs.moved(lambda a: a.reshape(groups, outer // groups, -1))
  out = _batched_product(recorder, equation, lhs.moved(gather), kernels)
  spatial = [aval.shape[a] for a in numbers.out_spec[2:]]
  back = np.argsort(numbers.out_spec)

  def place(array: Array) -> Array:
    split = array.reshape(groups, batch, places, outer // groups)
    split = split.transpose(1, 0, 3, 2).reshape(batch, outer, *spatial)
    return split.transpose(back)

  return out.moved(place)


def _batched_product(
  recorder: Recording, equation: Equation, left: Tensor, right: Tensor
) -> Tensor:
  """Returns [g, m, n], the product of [g, m, k] and [g, n, k]."""
  params = equation.params
  shape = (*left.shape[:2], right.shape[1])
  product = dataclasses.replace(
    equation,
    primitive=jax.lax.dot_general_p,
    params={
      'dimension_numbers': (((2,), (2,)), ((0,), (0,))),
      'precision': params['precision'],
      'preferred_element_type': params['preferred_element_type'],
      'out_sharding': None,
    },
    avals=[core.ShapedArray(shape, equation.avals[0].dtype)],
  )
  (out,) = recorder.apply(product, [left, right])
  return out


def _windows(shape: Shape, kernel: Sequence[int], params: Params) -> Array:
  """Returns the flat spatial index of each place and tap; -1 for padding."""
  flat = np.zeros((1, 1), np.int64)
  valid = np.ones((1, 1), bool)
  for size, width, stride, (low, high), spread, holes in zip(
    shape[2:],
    kernel,
    params['window_strides'],
    params['padding'],
    params['lhs_dilation'],
    params['rhs_dilation'],
    strict=True,
  ):
    inside = (size - 1) * spread + 1
    count = (inside + low + high - (width - 1) * holes - 1) // stride + 1
    first = np.arange(count)[:, None] * stride - low
    index = first + np.arange(width) * holes
    inner = (index >= 0) & (index < inside) & (index % spread == 0)
    flat = _outer(flat * size, index // spread, np.add)
    valid = _outer(valid, inner, np.logical_and)
  return np.where(valid, flat, -1)


def _outer(a: Array, b: Array, combine: Any) -> Array:
  """Combines [p, t] and [q, u] to [p * q, t * u]."""
  out = combine(a[:, None, :, None], b[None, :, None, :])
  return out.reshape(math.prod(out.shape[:2]), math.prod(out.shape[2:]))
