"""Pointwise primitives: which results are constants, copies, or new scalars.

A masked weight is no dependence. So a product with an exact constant zero is
zero, a choice by a constant is what it chooses, and an exponential of a score
to which a mask of less than -5000 was added is zero. Only constants decide
here; the value of a data scalar is never read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.liveness.program import movement, scalars
from kvjax.liveness.program.scalars import Shape, Tensor

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
  name: str, ins: Sequence[Tensor], aval: Any, natural: int = 0
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
  for pattern in _PATTERNS.get(name, ()):
    pattern(state)
  if name in _LIMITS and ins[0].offset is not None:
    state.settle(ins[0].offset < -FAR, _LIMITS[name])
  offset = _offset(name, ins, aval.shape)
  return Tensor(state.ids, state.const, offset), state.open


class _Folding:
  """The result so far; `open` scalars are not decided yet."""

  def __init__(self, ins: Sequence[Tensor], aval: Any, natural: int) -> None:
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


def _sign(left: int, value: bool) -> Callable[[_Folding], None]:
  """Returns a pattern: ids compared with 0, which are never negative."""

  def settle(state: _Folding) -> None:
    ids = state.ins[left].ids
    known = (ids != scalars.CONST) & (ids < state.natural)
    state.settle(known & state.equals(1 - left, 0), value)

  return settle


def _mul(state: _Folding) -> None:
  for a in (0, 1):
    state.settle(state.equals(a, 0), 0)


def _div(state: _Folding) -> None:
  # 0 / x is 0 for floats. JAX divides integers by 0 to -1.
  if jax.numpy.issubdtype(state.const.dtype, np.inexact):
    state.settle(state.equals(0, 0) & ~state.ins[1].is_const, 0)


def _add(state: _Folding) -> None:
  _infinite(state, 1)


def _sub(state: _Folding) -> None:
  _infinite(state, -1)


def _infinite(state: _Folding, sign: int) -> None:
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


def _and(state: _Folding) -> None:
  if state.const.dtype == bool:
    for a in (0, 1):
      state.settle(state.equals(a, False), False)
      state.copy(state.equals(a, True), state.ins[1 - a])


def _or(state: _Folding) -> None:
  if state.const.dtype == bool:
    for a in (0, 1):
      state.settle(state.equals(a, True), True)
      state.copy(state.equals(a, False), state.ins[1 - a])


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


_PATTERNS = {
  'mul': (_mul,),
  'div': (_div,),
  'add': (_add,),
  'add_any': (_add,),
  'sub': (_sub,),
  'max': (_max,),
  'and': (_and,),
  'or': (_or,),
  'select_n': (_select,),
  'ge': (_sign(0, True),),
  'lt': (_sign(0, False),),
  'le': (_sign(1, True),),
  'gt': (_sign(1, False),),
  'convert_element_type': (_convert,),
}


def _offset(name: str, ins: Sequence[Tensor], shape: Shape) -> Array | None:
  """Returns the constant added to each data scalar; None: no mask is in it."""
  masks = [t for t in ins if _carries_mask(t)]
  if not masks or name not in _LINEAR or 0 in shape:
    return None
  parts = [movement.offset_of(t) for t in ins]
  with np.errstate(all='ignore'):
    if name in ('mul', 'div'):
      # The offset scales with a constant; data may scale it to anything.
      scaled = np.multiply if name == 'mul' else np.divide
      known = ins[1].is_const | (ins[0].is_const & (name == 'mul'))
      out = np.where(known, scaled(parts[0], parts[1]), 0.0)
    elif name == 'select_n':
      out = _chosen(ins[0], parts[1:])
    else:
      out = _LINEAR[name](parts)
  # Small constants, biases, are no masks: most tensors need no offset.
  return np.nan_to_num(out, nan=0.0) if np.any(np.abs(out) > FAR) else None


def _carries_mask(tensor: Tensor) -> bool:
  if tensor.offset is not None:
    return True
  const = np.asarray(tensor.const)
  if not jax.numpy.issubdtype(const.dtype, np.inexact):
    return False
  return bool(np.any(tensor.is_const & (np.abs(const) > FAR)))


def _chosen(which: Tensor, parts: Sequence[Array]) -> Array:
  out = np.zeros(parts[0].shape)
  for a, case in enumerate(parts):
    out = np.where(which.is_const & (np.asarray(which.const) == a), case, out)
  return out


_LINEAR = {
  'add': lambda p: p[0] + p[1],
  'add_any': lambda p: p[0] + p[1],
  'sub': lambda p: p[0] - p[1],
  'neg': lambda p: -p[0],
  'mul': None,
  'div': None,
  'convert_element_type': lambda p: p[0],
  'reduce_precision': lambda p: p[0],
  'select_n': None,
}
