"""Tables of queries by keys, of which only a constant varies along both.

Three forms are followed through a program. A value is *thin* where it is the
same for every position along an axis: scores of queries that are the same in
every row. A *score* is thin along the queries, plus a constant (a mask, a
slope), less what is thin along the keys (a maximum). A *product* is a constant
times factors, none of which has both positions, times the exponential of a
score. Sums and maxima of these over the keys become loops (`loops`).
"""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kvjax.liveness.program import folding
from kvjax.liveness.program.scalars import Shape
from kvjax.liveness.recurrence.loops import Factor

Array = np.ndarray
SAME = frozenset(('name', 'copy', 'stop_gradient', 'convert_element_type'))


class MaskedScore(NamedTuple):
  """column + bias - row."""

  column: Any  # of the table's rank, and of size 1 along queries
  bias: Array  # of the table's shape; -inf where masked
  row: Any  # of the table's rank, and of size 1 along keys; or None
  letters: str  # of the axes


class Product(NamedTuple):
  """weight * exp(score) * factors."""

  weight: Array  # of the table's shape
  letters: str  # of its axes
  factors: tuple[Factor, ...] = ()
  score: MaskedScore | None = None


class TrackedArray(NamedTuple):
  """One array of the program; `known` where it does not depend on the input."""

  array: Any
  known: Array | None = None
  thin: Any = None  # of the same rank, of size 1 where it does not vary
  form: MaskedScore | Product | None = None

  @property
  def shape(self) -> Shape:
    return np.shape(self.array)


def letters_of(rank: int) -> str:
  """Returns a letter for every axis."""
  return string.ascii_lowercase[:rank]


def unused(count: int, *taken: str) -> str:
  """Returns letters that are not taken."""
  free = [c for c in string.ascii_letters if c not in ''.join(taken)]
  return ''.join(free[:count])


def thinnest(value: TrackedArray, length: int) -> Any:
  """Returns the value, of size 1 along positions where all are the same."""
  if value.known is None:
    return value.array if value.thin is None else value.thin
  out = value.known
  for axis, size in enumerate(out.shape):
    part = out.take([0], axis) if size == length else out
    if np.array_equal(np.broadcast_to(part, out.shape), out):
      out = part
  return out


def factor(array: Any, letters: str) -> Factor:
  """Returns a thin array without its axes of size 1."""
  thin = [i for i, n in enumerate(np.shape(array)) if n == 1]
  kept = ''.join(c for i, c in enumerate(letters) if i not in thin)
  return Factor(jnp.squeeze(jnp.asarray(array), thin), kept)


def form(
  name: str, params: Any, ins: Sequence[TrackedArray], shape: Shape, length: int
) -> MaskedScore | Product | None:
  """Returns the form of an equation's result, or None.

  `ins` are not all constants.
  """
  if name in SAME:
    return ins[0].form
  if name == 'dot_general':
    return _outer(params, ins, shape)
  if name in ('transpose', 'broadcast_in_dim', 'squeeze'):
    return _moved(name, params, ins[0], shape)
  if name == 'exp' and isinstance(ins[0].form, MaskedScore):
    return _exponential(ins[0].form)
  rule = _RULES.get(name)
  if rule is None or shape.count(length) < 2:
    return None
  return rule(_Operands(ins, shape, length))


class _Operands(NamedTuple):
  """Operands of a pointwise equation, each in the forms that it may have."""

  ins: Sequence[TrackedArray]
  shape: Shape  # of the result
  length: int

  @property
  def letters(self) -> str:
    return letters_of(len(self.shape))

  def thin(self, i: int) -> Any:
    """Returns an operand of the result's rank, thin along some positions."""
    value = self.ins[i]
    out = thinnest(value, self.length)
    if len(np.shape(out)) != len(self.shape):
      return out if value.known is not None and np.ndim(out) == 0 else None
    sizes = zip(np.shape(out), self.shape, strict=True)
    return out if (1, self.length) in sizes else None

  def new_thin(self, i: int) -> Any:
    """Returns a thin operand of data that has no form yet, or None."""
    value = self.ins[i]
    if value.known is not None or value.form is not None:
      return None
    return self.thin(i)

  def score(self, i: int) -> MaskedScore | None:
    """Returns an operand as a score, if it is one or thin."""
    value = self.ins[i]
    if isinstance(value.form, MaskedScore):
      return value.form
    thin = self.new_thin(i)
    if thin is None:
      return None
    return MaskedScore(
      thin, np.zeros(self.shape, np.float32), None, self.letters
    )

  def product(self, i: int) -> Product | None:
    """Returns an operand as a product, if it is one or thin."""
    value = self.ins[i]
    if isinstance(value.form, Product):
      return value.form
    thin = self.new_thin(i)
    if thin is None:
      return None
    weight = np.ones(self.shape, np.float32)
    return Product(weight, self.letters, (factor(thin, self.letters),))

  def table(self, i: int) -> Array | None:
    """Returns a constant operand, of the result's shape."""
    known = self.ins[i].known
    return None if known is None else np.broadcast_to(known, self.shape)


def _mul(operands: _Operands) -> Product | None:
  for i in (0, 1):
    product = operands.product(i)
    table = operands.table(1 - i)
    thin = operands.thin(1 - i)
    if product is not None and table is not None:
      return product._replace(weight=product.weight * table)
    if product is not None and thin is not None:
      return _times(product, thin)
  return None


def _times(product: Product, thin: Any) -> Product:
  factors = (*product.factors, factor(thin, product.letters))
  return product._replace(factors=factors)


def _div(operands: _Operands) -> Product | None:
  product = operands.product(0)
  table = operands.table(1)
  thin = operands.thin(1)
  if product is not None and table is not None:
    with np.errstate(all='ignore'):
      return product._replace(weight=product.weight / table)
  if product is not None and thin is not None:
    return _times(product, 1 / thin)
  return None


def _add(operands: _Operands) -> MaskedScore | None:
  for i in (0, 1):
    score = operands.score(i)
    table = operands.table(1 - i)
    if score is not None and table is not None:
      return score._replace(bias=score.bias + table)
  return None


def _sub(operands: _Operands) -> MaskedScore | None:
  score = operands.score(0)
  table = operands.table(1)
  thin = operands.thin(1)
  if score is not None and table is not None:
    return score._replace(bias=score.bias - table)
  if score is None or thin is None:
    return None
  row = thin if score.row is None else score.row + thin
  return score._replace(row=row)


def _select(operands: _Operands) -> MaskedScore | Product | None:
  """Returns an operand under a mask: a constant chooses it, or a constant."""
  which = operands.table(0)
  if which is None or len(operands.ins) != 3:
    return None
  for case in (1, 2):
    chosen = which == case - 1
    other = operands.table(3 - case)
    if other is None or operands.ins[case].known is not None:
      continue
    # A product is hidden by zeros, a score by a mask that softmax makes zero.
    hidden = other[~chosen]
    score = operands.score(case)
    product = operands.product(case)
    if product is not None and np.all(hidden == 0):
      return product._replace(weight=np.where(chosen, product.weight, 0))
    if score is not None and np.all(hidden < -folding.FAR):
      return score._replace(bias=np.where(chosen, score.bias, -np.inf))
  return None


_RULES = {
  'add': _add,
  'add_any': _add,
  'div': _div,
  'mul': _mul,
  'select_n': _select,
  'sub': _sub,
}


def masked(bias: Array) -> Array:
  """Returns the constant part of a score, -inf where it is a mask."""
  bias = np.where(bias < -folding.FAR, -np.inf, bias)
  return np.ascontiguousarray(bias, np.float32)


def _exponential(score: MaskedScore) -> Product:
  """Returns exp(score); a factor exp(column) where no maximum is subtracted.

  With a maximum, exp(column) alone may overflow: the score stays whole.
  """
  bias = masked(score.bias)
  if score.row is None:
    column = factor(jnp.exp(score.column), score.letters)
    return Product(np.exp(bias), score.letters, (column,))
  visible = (bias > -np.inf).astype(np.float32)
  return Product(visible, score.letters, (), score)


def contraction(
  params: Any, letters: str, taken: str, other_shape: Shape, side: int
) -> tuple[str, str]:
  """Returns letters of the other operand of a product, and of the result.

  Args:
    params: of the product.
    letters: of the operand on `side`.
    taken: letters that new axes must not have.
    other_shape: of the other operand.
    side: 0 or 1.
  """
  contracted, batch = params['dimension_numbers']
  paired = (*contracted[side], *batch[side])
  other_paired = (*contracted[1 - side], *batch[1 - side])
  other = list(unused(len(other_shape), letters, taken))
  for i, j in zip(paired, other_paired, strict=True):
    other[j] = letters[i]
  batched = [letters[i] for i in batch[side]]
  free = [c for i, c in enumerate(letters) if i not in paired]
  other_free = [c for i, c in enumerate(other) if i not in other_paired]
  left, right = (free, other_free) if side == 0 else (other_free, free)
  return ''.join(other), ''.join([*batched, *left, *right])


def _outer(
  params: Any, ins: Sequence[TrackedArray], shape: Shape
) -> Product | None:
  """Returns Q K^T: its two factors share letters that the table lacks."""
  if any(v.known is not None for v in ins):
    return None
  left = letters_of(len(ins[0].shape))
  right, out = contraction(params, left, '', ins[1].shape, 0)
  factors = Factor(ins[0].array, left), Factor(ins[1].array, right)
  return Product(np.ones(shape, np.float32), out, factors)


def visible_bias(product: Product) -> Array | None:
  """Returns the bias of a product's score, -inf where the product is zero.

  None where the product has other axes than the score.
  """
  score = product.score
  if score is None or sorted(product.letters) != sorted(score.letters):
    return None
  order = [product.letters.index(c) for c in score.letters]
  zero = (product.weight == 0).transpose(order)
  return masked(np.where(zero, -np.inf, score.bias))


def _moved(
  name: str, params: Any, value: TrackedArray, shape: Shape
) -> MaskedScore | Product | None:
  """Returns a table with its axes in another order, or with more axes."""
  table = value.form
  if table is None:
    return None
  if name == 'transpose':
    order = tuple(params['permutation'])
    move = lambda a: a.transpose(order)
    letters = ''.join(table.letters[i] for i in order)
  elif name == 'squeeze':
    axes = tuple(params['dimensions'])
    move = lambda a: a.squeeze(axes)
    letters = ''.join(c for i, c in enumerate(table.letters) if i not in axes)
  else:
    dims = tuple(params['broadcast_dimensions'])
    fresh = unused(len(shape), *_taken(table))
    letters = ''.join(
      table.letters[dims.index(i)] if i in dims else c
      for i, c in enumerate(fresh)
    )
    move = lambda a: a.reshape(spread(a.shape, dims, len(shape)))
  if isinstance(table, Product):
    weight = np.broadcast_to(move(table.weight), shape)
    return table._replace(weight=weight, letters=letters)
  row = None if table.row is None else move(table.row)
  bias = np.broadcast_to(move(table.bias), shape)
  return MaskedScore(move(table.column), bias, row, letters)


def _taken(table: MaskedScore | Product) -> list[str]:
  if isinstance(table, MaskedScore):
    return [table.letters]
  inner = [] if table.score is None else [table.score.letters]
  return [table.letters, *(f.letters for f in table.factors), *inner]


def spread(sizes: Shape, dims: Sequence[int], rank: int) -> Shape:
  """Returns sizes at the axes `dims` of a shape that is 1 elsewhere."""
  out = [1] * rank
  for size, axis in zip(sizes, dims, strict=True):
    out[axis] = size
  return tuple(out)
