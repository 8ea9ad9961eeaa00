"""Primitives on values: by NumPy where it means the same, else by JAX.

An analysis runs many small equations once each. JAX would compile each of
them; NumPy compiles none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    rule = _TABLE.get(primitive.name)
    if rule is not None and all(v.dtype in rule.dtypes for v in values):
      out = rule.function(params, *map(np.asarray, values))
      if out is not None:
        return [np.asarray(out)]
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


class _Rule(NamedTuple):
  """A function of NumPy and the dtypes on which it means what JAX means."""

  function: Callable[..., Any]  # of the parameters and values; None: by JAX
  dtypes: tuple[Any, ...]


_FLOAT = (np.float32,)
_PLAIN = (np.float32, np.int32, np.bool_)


def _by_values(function: Callable[..., Any], dtypes: tuple[Any, ...]) -> _Rule:
  """Returns a rule that needs no parameters."""
  return _Rule(lambda params, *values: function(*values), dtypes)


def _iota(params: Params) -> Array:
  shape = params['shape']
  columns = np.indices(shape, params['dtype'], sparse=True)
  return np.broadcast_to(columns[params['dimension']], shape)


def _convert(params: Params, value: Array) -> Array | None:
  dtype = params['new_dtype']
  return value.astype(dtype) if dtype in _PLAIN else None


def _select(params: Params, which: Array, *cases: Array) -> Array | None:
  return np.where(which, cases[1], cases[0]) if which.dtype == bool else None


def _dot(params: Params, a: Array, b: Array) -> Array:
  (left, right), (lead, follow) = params['dimension_numbers']
  first = list(range(a.ndim))
  second = list(range(a.ndim, a.ndim + b.ndim))
  for i, j in zip((*left, *lead), (*right, *follow), strict=True):
    second[j] = first[i]
  free = [i for i in first if i not in second]
  free += [j for j in second if j not in first]
  return np.einsum(a, first, b, second, [first[i] for i in lead] + free)


# NumPy calls the first of these as JAX calls its primitives.
_SAME_NAMES = 'cos exp floor log log1p sin sqrt tanh'.split()
_ON_FLOATS = {name: getattr(np, name) for name in _SAME_NAMES} | {
  'div': np.divide,
  'logistic': lambda a: 1 / (1 + np.exp(-a)),
  'neg': np.negative,
  'pow': np.power,
  'rsqrt': lambda a: 1 / np.sqrt(a),
  'sub': np.subtract,
}
_ON_PLAIN = {
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

_TABLE = {
  **{name: _by_values(f, _FLOAT) for name, f in _ON_FLOATS.items()},
  **{name: _by_values(f, _PLAIN) for name, f in _ON_PLAIN.items()},
  **{name: _by_values(f, (np.bool_,)) for name, f in _ON_BOOLEANS.items()},
  **{
    name: _Rule(lambda p, v, f=f: f(v, axis=tuple(p['axes'])), _FLOAT)
    for name, f in _REDUCTIONS.items()
  },
  'convert_element_type': _Rule(_convert, _PLAIN),
  'dot_general': _Rule(_dot, _FLOAT),
  'integer_pow': _Rule(lambda p, v: v ** p['y'], _FLOAT),
  'iota': _Rule(_iota, _PLAIN),
  'select_n': _Rule(_select, _PLAIN),
}
