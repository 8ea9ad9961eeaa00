"""Pointwise primitives: which results are constants, copies, or new scalars.

A masked weight is no dependence. So a product with an exact constant zero is
zero, a choice by a constant is what it chooses, and an exponential of a score
to which a mask of less than -5000 was added is zero. Only constants decide
here; the value of a data scalar is never read.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.liveness.program import movement, scalars
from kvjax.liveness.program.scalars import Shape, Tensor, Tensors

Array = np.ndarray

# A constant this far below zero is a mask: exp(-104) is already 0 in float32,
# and no score is large enough to make up for the other 4896.
FAR = 5e3

POINTWISE = frozenset(
  """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
  clz complex conj convert_element_type cos cosh digamma div eq erf erf_inv
  erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log
  log1p logistic lt max min mul ne neg nextafter not or population_count pow
  real reduce_precision rem round rsqrt select_n shift_left
  shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan
  tanh xor""".split()
)

# Whether these fold depends on numbers in a table, which may be accidental.
ARITHMETIC = frozenset(('add', 'add_any', 'div', 'mul', 'sub'))

_LIMITS = {'exp': 0, 'exp2': 0, 'logistic': 0, 'expm1': -1, 'tanh': -1}


def fold(
  name: str, ins: Tensors, aval: Any, natural: int = 0
) -> tuple[Tensor, Array]:
  """Resolves what can be resolved without making a scalar.

  Args:
    name: of the primitive.
    ins: its operands, of the result's shape.
    aval: shape and dtype of the result.
    natural: scalars numbered below this are known to be at least 0.

  Returns:
    The result, and a mask of the scalars still to be made or evaluated.
  """
  state = _Folding(ins, aval, natural)
  if name in _PATTERNS:
    _PATTERNS[name](state)
  if name in _LIMITS and ins[0].offset is not None:
    state.settle(ins[0].offset < -FAR, _LIMITS[name])
  offset = _offset(name, ins, aval.shape)
  return Tensor(state.ids, state.const, offset), state.open


class _Folding:
  """The result so far; `open` scalars are not decided yet."""

  def __init__(self, ins: Tensors, aval: Any, natural: int) -> None:
    self.ins = ins
    self.natural = natural
    self.ids = np.full(aval.shape, scalars.CONST, np.int64)
    self.const = np.zeros(aval.shape, aval.dtype)
    self.open = np.ones(aval.shape, bool)

  def settle(self, where: Array, value: Any) -> None:
    """Makes open scalars constants."""
    where = where & self.open
    self.const[where] = np.broadcast_to(value, self.const.shape)[where]
    self.open &= ~where

  def copy(self, where: Array, source: Tensor) -> None:
    """Makes open scalars those of an operand."""
    where = where & self.open
    self.ids[where] = source.ids[where]
    self.const[where] = np.asarray(source.const)[where]
    self.open &= ~where

  def equals(self, operand: int, value: Any) -> Array:
    """Returns where an operand is a constant of this value."""
    tensor = self.ins[operand]
    return tensor.is_const & (np.asarray(tensor.const) == value)


def _sign(state: _Folding, left: int, value: bool) -> None:
  """Settles comparisons of ids with 0: ids are never negative."""
  ids = state.ins[left].ids
  known = (ids != scalars.CONST) & (ids < state.natural)
  state.settle(known & state.equals(1 - left, 0), value)


def _mul(state: _Folding) -> None:
  for a in (0, 1):
    state.settle(state.equals(a, 0), 0)


def _div(state: _Folding) -> None:
  # 0 / x is 0 for floats. JAX divides integers by 0 to -1.
  if jax.numpy.issubdtype(state.const.dtype, np.inexact):
    state.settle(state.equals(0, 0) & ~state.ins[1].is_const, 0)


def _add(state: _Folding, sign: int = 1) -> None:
  """Settles sums with an infinite constant, which a finite number leaves."""
  for a, s in ((0, 1), (1, sign)):
    for value in (np.inf, -np.inf):
      other = ~state.ins[1 - a].is_const
      state.settle(state.equals(a, value) & other, s * value)


def _max(state: _Folding) -> None:
  for a in (0, 1):
    far = state.ins[1 - a].offset
    if far is not None:
      # A masked score is below any constant that is no mask.
      near = np.asarray(state.ins[a].const) > -FAR / 2
      state.copy(state.ins[a].is_const & near & (far < -FAR), state.ins[a])


def _logic(state: _Folding, absorbing: bool) -> None:
  """Settles `and` by False and `or` by True; the other value is neutral."""
  if state.const.dtype == bool:
    for a in (0, 1):
      state.settle(state.equals(a, absorbing), absorbing)
      state.copy(state.equals(a, not absorbing), state.ins[1 - a])


def _select(state: _Folding) -> None:
  which, *cases = state.ins
  for a, case in enumerate(cases):
    state.copy(state.equals(0, a), case)
  if len(cases) != 2:
    return
  # Data choose, but both cases are the same scalar or the same constant.
  first, second = cases
  state.copy((first.ids == second.ids) & ~first.is_const, second)
  equal = np.asarray(first.const) == np.asarray(second.const)
  constant = first.is_const & second.is_const
  state.copy(constant & equal & ~which.is_const, second)


def _convert(state: _Folding) -> None:
  if np.asarray(state.ins[0].const).dtype == state.const.dtype:
    state.copy(np.ones(state.open.shape, bool), state.ins[0])


_PATTERNS: dict[str, Callable[[_Folding], None]] = {
  'mul': _mul,
  'div': _div,
  'add': _add,
  'add_any': _add,
  'sub': functools.partial(_add, sign=-1),
  'max': _max,
  'and': functools.partial(_logic, absorbing=False),
  'or': functools.partial(_logic, absorbing=True),
  'select_n': _select,
  'ge': functools.partial(_sign, left=0, value=True),
  'lt': functools.partial(_sign, left=0, value=False),
  'le': functools.partial(_sign, left=1, value=True),
  'gt': functools.partial(_sign, left=1, value=False),
  'convert_element_type': _convert,
}


def _offset(name: str, ins: Tensors, shape: Shape) -> Array | None:
  """Returns the constant added to each data scalar; None: no mask is in it."""
  masks = [t for t in ins if _carries_mask(t)]
  if not masks or name not in _LINEAR or 0 in shape:
    return None
  with np.errstate(all='ignore'):
    out = _LINEAR[name](ins, [movement.offset_of(t) for t in ins])
  # Small constants, biases, are no masks: most tensors need no offset.
  return np.nan_to_num(out, nan=0.0) if np.any(np.abs(out) > FAR) else None


def _carries_mask(tensor: Tensor) -> bool:
  if tensor.offset is not None:
    return True
  const = np.asarray(tensor.const)
  if not jax.numpy.issubdtype(const.dtype, np.inexact):
    return False
  return bool(np.any(tensor.is_const & (np.abs(const) > FAR)))


def _scaled(ins: Tensors, parts: Sequence[Array], scale: Any) -> Array:
  """Scales an offset by a constant; data may scale it to anything."""
  commutes = scale is np.multiply
  known = ins[1].is_const | (ins[0].is_const & commutes)
  return np.where(known, scale(*parts), 0.0)


def _chosen(ins: Tensors, parts: Sequence[Array]) -> Array:
  """Returns the offset of the case that a constant chooses, else 0."""
  which = ins[0]
  out = np.zeros(which.shape)
  for a, case in enumerate(parts[1:]):
    out = np.where(which.is_const & (np.asarray(which.const) == a), case, out)
  return out


_LINEAR: dict[str, Callable[[Tensors, Sequence[Array]], Array]] = {
  'add': lambda ins, p: p[0] + p[1],
  'add_any': lambda ins, p: p[0] + p[1],
  'sub': lambda ins, p: p[0] - p[1],
  'neg': lambda ins, p: -p[0],
  'mul': functools.partial(_scaled, scale=np.multiply),
  'div': functools.partial(_scaled, scale=np.divide),
  'convert_element_type': lambda ins, p: p[0],
  'reduce_precision': lambda ins, p: p[0],
  'select_n': _chosen,
}
