"""Primitives that are written in smaller ones before they are recorded.

A cumulative sum becomes its recurrence: the future reads one row of it, not
the past. A convolution becomes windows, which only move, and a product.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import core

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import folding, scalars

if TYPE_CHECKING:
  from kvjax.liveness.program import record

Array = np.ndarray
Tensor = scalars.Tensor
Params = dict[str, Any]

_CUMULATIVE = frozenset(
  ('cumsum', 'cummax', 'cummin', 'cumprod', 'cumlogsumexp')
)


def lower(
  recorder: 'record.Recorder',
  primitive: Any,
  params: Params,
  ins: Sequence[Tensor],
  avals: Sequence[Any],
  origin: 'record.Origin',
) -> list[Tensor] | None:
  """The results in smaller primitives, or None."""
  name = primitive.name
  if name in _CUMULATIVE:
    return _recurrence(recorder, primitive, params, ins[0], origin)
  if name == 'conv_general_dilated':
    return [_convolution(recorder, params, ins, avals[0], origin)]
  if name == 'split':
    edges = np.cumsum(params['sizes'])[:-1]
    parts = [
      ins[0].moved(lambda a, i=i: np.split(a, edges, params['axis'])[i])
      for i in range(len(params['sizes']))
    ]
    return parts
  if name == 'unstack':  # What an array is unpacked by, since JAX 0.12.
    axis = params['axis']
    count = range(ins[0].shape[axis])
    return [ins[0].moved(lambda a, i=i: np.take(a, i, axis)) for i in count]
  if name == 'reduce_max' and ins[0].offset is not None:
    kept = _without_masked(ins[0], ins[0].offset, tuple(params['axes']))
    if kept is not ins[0]:
      return recorder.mixed(primitive, params, [kept], avals, origin)
  if name == 'optimization_barrier':
    return list(ins)
  if name == 'square':
    return recorder.apply(jax.lax.mul_p, {}, [ins[0], ins[0]], avals, origin)
  return None


def _without_masked(
  operand: Tensor, offset: Array, axes: tuple[int, ...]
) -> Tensor:
  """A score under a mask is not the greatest while another is not masked."""
  far = offset < -folding.FAR
  near = ~operand.is_const & ~far
  hidden = far & ~operand.is_const & near.any(axes, keepdims=True)
  if not hidden.any():
    return operand
  const = np.where(hidden, -np.inf, np.asarray(operand.const))
  dtype = np.asarray(operand.const).dtype
  ids = np.where(hidden, scalars.CONST, operand.ids)
  return Tensor(ids, const.astype(dtype), offset)


def _recurrence(
  recorder: 'record.Recorder',
  primitive: Any,
  params: Params,
  operand: Tensor,
  origin: 'record.Origin',
) -> list[Tensor] | None:
  """out[i] = out[i - 1] (+) x[i], along an axis whose rows differ in time."""
  axis, reverse = params['axis'], params['reverse']
  ready = scalars.lookup(recorder.table.available, operand.ids)
  if not np.any(ready.min(axis) != ready.max(axis)):
    return None
  rows = [
    operand.moved(lambda a, i=i: np.take(a, [i], axis))
    for i in range(operand.shape[axis])
  ]
  rows = rows[::-1] if reverse else rows
  out = [_first(recorder, primitive, rows[0], origin)]
  for row in rows[1:]:
    pair = _join([out[-1], row], axis)
    aval = core.ShapedArray(pair.shape, np.asarray(pair.const).dtype)
    plain = params | {'reverse': False}
    both = _combine(recorder, primitive, plain, pair, aval, origin)
    out.append(both)
  return [_join(out[::-1] if reverse else out, axis)]


_PAIRWISE = {
  'cumsum': ('add_p', 0),
  'cummax': ('max_p', -(2.0**31)),
  'cummin': ('min_p', 2.0**31 - 1),
  'cumprod': ('mul_p', 1),
}


def _first(
  recorder: 'record.Recorder',
  primitive: Any,
  row: Tensor,
  origin: 'record.Origin',
) -> Tensor:
  """The first row, made like the others: all rows are of one tensor."""
  if primitive.name not in _PAIRWISE:
    return row
  name, neutral = _PAIRWISE[primitive.name]
  dtype = np.asarray(row.const).dtype
  blank = scalars.constant(np.full(row.shape, neutral).astype(dtype))
  aval = core.ShapedArray(row.shape, dtype)
  simple = getattr(jax.lax, name)
  (out,) = recorder.apply(simple, {}, [blank, row], [aval], origin)
  return out


def _combine(
  recorder: 'record.Recorder',
  primitive: Any,
  params: Params,
  pair: Tensor,
  aval: Any,
  origin: 'record.Origin',
) -> Tensor:
  axis = params['axis']
  half = [pair.moved(lambda a, i=i: np.take(a, [i], axis)) for i in (0, 1)]
  small = aval.update(shape=half[0].shape)
  if primitive.name in _PAIRWISE:
    simple = getattr(jax.lax, _PAIRWISE[primitive.name][0])
    (out,) = recorder.apply(simple, {}, half, [small], origin)
    return out
  # log(exp(a) + exp(b)) is a reduction in its own right.
  (out,) = recorder.mixed(primitive, params, [pair], [aval], origin)
  return out.moved(lambda a: np.take(a, [1], axis))


def _join(parts: Sequence[Tensor], axis: int) -> Tensor:
  offset = None
  if any(t.offset is not None for t in parts):
    offset = np.concatenate(
      [np.zeros(t.shape) if t.offset is None else t.offset for t in parts],
      axis,
    )
  return Tensor(
    np.concatenate([t.ids for t in parts], axis),
    np.concatenate([np.asarray(t.const) for t in parts], axis),
    offset,
  )


def _convolution(
  recorder: 'record.Recorder',
  params: Params,
  ins: Sequence[Tensor],
  aval: Any,
  origin: 'record.Origin',
) -> Tensor:
  """Windows [groups, batch * places, taps] times kernels, as one product."""
  if params['batch_group_count'] != 1:
    raise AnalysisError(f'batch_group_count > 1: {origin.text}.')
  numbers = params['dimension_numbers']
  groups = params['feature_group_count']
  lhs = ins[0].moved(lambda a: np.transpose(a, numbers.lhs_spec))
  rhs = ins[1].moved(lambda a: np.transpose(a, numbers.rhs_spec))
  batch, (outer, depth, *kernel) = lhs.shape[0], rhs.shape
  index = _windows(lhs.shape, kernel, params)  # [places, taps], -1 outside
  places, taps = index.shape

  def gather(array: Array) -> Array:
    flat = array.reshape(batch, groups, depth, -1)
    blank = scalars.CONST if array.dtype == np.int64 else 0
    flat = np.concatenate([flat, np.full_like(flat[..., :1], blank)], -1)
    flat = flat[..., index].transpose(1, 0, 3, 2, 4)
    return flat.reshape(groups, batch * places, depth * taps)

  kernels = rhs.moved(lambda a: a.reshape(groups, outer // groups, -1))
  shape = (groups, batch * places, outer // groups)
  (out,) = recorder.apply(
    jax.lax.dot_general_p,
    {
      'dimension_numbers': (((2,), (2,)), ((0,), (0,))),
      'precision': params['precision'],
      'preferred_element_type': params['preferred_element_type'],
      'out_sharding': None,
    },
    [lhs.moved(gather), kernels],
    [core.ShapedArray(shape, aval.dtype)],
    origin,
  )
  spatial = [aval.shape[a] for a in numbers.out_spec[2:]]
  back = np.argsort(numbers.out_spec)

  def place(array: Array) -> Array:
    split = array.reshape(groups, batch, places, outer // groups)
    split = split.transpose(1, 0, 3, 2).reshape(batch, outer, *spatial)
    return split.transpose(back)

  return out.moved(place)


def _windows(
  shape: Sequence[int], kernel: Sequence[int], params: Params
) -> Array:
  """Flat spatial index read by each place and tap; -1 for padding."""
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
    at = np.arange(count)[:, None] * stride - low + np.arange(width) * holes
    good = (at >= 0) & (at < inside) & (at % spread == 0)
    flat = _outer(flat * size, at // spread, np.add)
    valid = _outer(valid, good, np.logical_and)
  return np.where(valid, flat, -1)


def _outer(a: Array, b: Array, combine: Any) -> Array:
  """Combines [p, t] and [q, u] to [p * q, t * u]."""
  out = combine(a[:, None, :, None], b[None, :, None, :])
  return out.reshape(math.prod(out.shape[:2]), math.prod(out.shape[2:]))
