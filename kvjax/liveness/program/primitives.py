"""Primitives on values: by NumPy where it means the same, else by JAX.

An analysis runs many small equations once each. JAX would compile each of
them; NumPy compiles none.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Array = np.ndarray
Params = dict[str, Any]


def evaluate(
  primitive: Any, params: Params, values: Sequence[Any]
) -> list[Any]:
  """Returns the results of one equation on values, as NumPy arrays.

  Warnings of NumPy are off: constants may overflow, as on a device.
  """
  with np.errstate(all='ignore'):
    by_numpy = _TABLE.get(primitive.name)
    if by_numpy is not None and all(_plain(v) for v in values):
      out = by_numpy(params, *map(np.asarray, values))
      if out is not None:
        return [out]
    outs = bind(primitive, params, [jax.numpy.asarray(v) for v in values])
    return [o if is_extended(o) else np.asarray(o) for o in outs]


def bind(primitive: Any, params: Params, operands: Sequence[Any]) -> list[Any]:
  """Returns the results of one equation on JAX arrays or tracers."""
  bound = primitive.get_bind_params(params)
  # A pair of functions and parameters before JAX 0.10, one mapping since.
  functions, bound = bound if isinstance(bound, tuple) else ((), bound)
  out = primitive.bind(*functions, *operands, **bound)
  return list(out) if primitive.multiple_results else [out]


def is_extended(value: Any) -> bool:
  """Returns whether a value, such as a random key, has no NumPy dtype."""
  dtype = getattr(value, 'dtype', None)
  return dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.extended)


def _plain(value: Any) -> bool:
  return not is_extended(value) and value.dtype in (
    np.float32,
    np.int32,
    np.bool_,
  )


def _arithmetic(function: Callable[..., Array]) -> Callable[..., Array | None]:
  """Returns `function` on float32; JAX takes integers and booleans."""

  def run(params: Params, *values: Array) -> Array | None:
    if any(v.dtype != np.float32 for v in values):
      return None
    return np.asarray(function(*values), np.float32)

  return run


def _anything(function: Callable[..., Array]) -> Callable[..., Array]:
  """Returns `function` on float32, int32 and booleans."""
  return lambda params, *values: function(*values)


def _logic(function: Callable[..., Array]) -> Callable[..., Array | None]:
  def run(params: Params, *values: Array) -> Array | None:
    return function(*values) if values[0].dtype == bool else None

  return run


def _reduction(function: Callable[..., Array]) -> Callable[..., Array | None]:
  def run(params: Params, value: Array) -> Array | None:
    if value.dtype != np.float32:
      return None
    return np.asarray(function(value, axis=tuple(params['axes'])))

  return run


def _iota(params: Params) -> Array:
  shape = params['shape']
  axis = params['dimension']
  lead = [1] * len(shape)
  lead[axis] = shape[axis]
  column = np.arange(shape[axis], dtype=params['dtype']).reshape(lead)
  return np.broadcast_to(column, shape)


def _convert(params: Params, value: Array) -> Array | None:
  dtype = params['new_dtype']
  if dtype not in (np.float32, np.int32, np.bool_):
    return None
  return value.astype(dtype)


def _select(params: Params, which: Array, *cases: Array) -> Array | None:
  if which.dtype != bool:
    return None
  return np.where(which, cases[1], cases[0])


def _dot(params: Params, a: Array, b: Array) -> Array | None:
  if a.dtype != np.float32 or b.dtype != np.float32:
    return None
  (left, right), (lead, follow) = params['dimension_numbers']
  first = list(range(a.ndim))
  second = list(range(a.ndim, a.ndim + b.ndim))
  for i, j in zip((*left, *lead), (*right, *follow), strict=True):
    second[j] = first[i]
  free = [i for i in first if i not in second]
  free += [j for j in second if j not in first]
  return np.einsum(a, first, b, second, [first[i] for i in lead] + free)


def _same_names(names: str) -> dict[str, Callable[..., Array]]:
  """Returns the functions that NumPy calls as JAX calls its primitives."""
  return {name: getattr(np, name) for name in names.split()}


_ON_FLOATS = _same_names('cos exp floor log log1p sin sqrt tanh') | {
  'div': np.divide,
  'logistic': lambda a: 1 / (1 + np.exp(-a)),
  'neg': np.negative,
  'pow': np.power,
  'rsqrt': lambda a: 1 / np.sqrt(a),
  'sub': np.subtract,
}
_ON_ANYTHING = {
  'add': np.add,
  'add_any': np.add,
  'eq': np.equal,
  'ge': np.greater_equal,
  'gt': np.greater,
  'le': np.less_equal,
  'lt': np.less,
  'max': np.maximum,
  'min': np.minimum,
  'mul': np.multiply,
  'ne': np.not_equal,
}
_ON_BOOLEANS = {
  'and': np.logical_and,
  'not': np.logical_not,
  'or': np.logical_or,
}
_REDUCTIONS = {'reduce_max': np.max, 'reduce_min': np.min, 'reduce_sum': np.sum}

_TABLE: dict[str, Callable[..., Array | None]] = {
  **{name: _arithmetic(f) for name, f in _ON_FLOATS.items()},
  **{name: _anything(f) for name, f in _ON_ANYTHING.items()},
  **{name: _logic(f) for name, f in _ON_BOOLEANS.items()},
  **{name: _reduction(f) for name, f in _REDUCTIONS.items()},
  'convert_element_type': _convert,
  'dot_general': _dot,
  'integer_pow': lambda p, v: _arithmetic(lambda a: a ** p['y'])(p, v),
  'iota': _iota,
  'select_n': _select,
}
