"""Tables of queries by keys, of which only a constant varies along both.

Three forms are followed through a program. A value is *thin* where it is the
same for every position along an axis: scores of queries that are the same in
every row. A *score* is thin along the queries, plus a constant (a mask, a
slope), less what is thin along the keys (a maximum). A *product* is a constant
times factors, none of which has both positions, times the exponential of a
score. Sums and maxima of these over the keys are loops (`running`).
"""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kvjax.liveness.program import folding
from kvjax.liveness.recurrence.loops import Factor

Array = np.ndarray
Shape = tuple[int, ...]
SAME = frozenset(('name', 'copy', 'stop_gradient', 'convert_element_type'))


class Score(NamedTuple):
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
  score: Score | None = None


class Value(NamedTuple):
  """One array of the program; `known` where it does not depend on the input."""

  array: Any
  known: Array | None = None
  thin: Any = None  # of the same rank, of size 1 where it does not vary
  form: Score | Product | None = None

  @property
  def shape(self) -> Shape:
    return np.shape(self.array)


def letters_of(rank: int) -> str:
  return string.ascii_lowercase[:rank]


def unused(count: int, *taken: str) -> str:
  """Letters that none of those taken is."""
  free = [c for c in string.ascii_letters if c not in ''.join(taken)]
  return ''.join(free[:count])


def thinnest(value: Value, length: int) -> Any:
  """The value, of size 1 along positions where it is the same for all."""
  if value.known is None:
    return value.array if value.thin is None else value.thin
  out = value.known
  for axis, size in enumerate(out.shape):
    part = out.take([0], axis) if size == length else out
    if np.array_equal(np.broadcast_to(part, out.shape), out):
      out = part
  return out


def factor(array: Any, letters: str) -> Factor:
  """A thin array without its axes of size 1."""
  gone = [i for i, n in enumerate(np.shape(array)) if n == 1]
  kept = ''.join(c for i, c in enumerate(letters) if i not in gone)
  return Factor(jnp.squeeze(jnp.asarray(array), gone), kept)


def form(
  name: str, params: Any, ins: Sequence[Value], shape: Shape, length: int
) -> Score | Product | None:
  """The form of an equation's result; `ins` are not all constants."""
  if name in SAME:
    return ins[0].form
  if name == 'dot_general':
    return _outer(params, ins, shape)
  if name in ('transpose', 'broadcast_in_dim', 'squeeze'):
    return _moved(name, params, ins[0], shape)
  if name == 'exp' and isinstance(ins[0].form, Score):
    return _exponential(ins[0].form)
  rule = _RULES.get(name)
  if rule is None or shape.count(length) < 2:
    return None
  return rule(_Operands(ins, shape, length))


class _Operands:
  """Operands of a pointwise equation as what they may be taken for."""

  def __init__(self, ins: Sequence[Value], shape: Shape, length: int) -> None:
    self.ins, self.shape, self.length = ins, shape, length
    self.letters = letters_of(len(shape))

  def thin(self, i: int) -> Any:
    """Of the result's rank, thin along some positions; or None."""
    value = self.ins[i]
    out = thinnest(value, self.length)
    if len(np.shape(out)) != len(self.shape):
      return out if value.known is not None and np.ndim(out) == 0 else None
    flat = [
      n
      for n, m in zip(np.shape(out), self.shape, strict=True)
      if n == 1 and m == self.length
    ]
    return out if flat else None

  def score(self, i: int) -> Score | None:
    value = self.ins[i]
    if isinstance(value.form, Score):
      return value.form
    thin = self.thin(i)
    if value.known is not None or value.form is not None or thin is None:
      return None
    return Score(thin, np.zeros(self.shape, np.float32), None, self.letters)

  def product(self, i: int) -> Product | None:
    value = self.ins[i]
    if isinstance(value.form, Product):
      return value.form
    thin = self.thin(i)
    if value.known is not None or value.form is not None or thin is None:
      return None
    weight = np.ones(self.shape, np.float32)
    return Product(weight, self.letters, (factor(thin, self.letters),))

  def table(self, i: int) -> Array | None:
    known = self.ins[i].known
    return None if known is None else np.broadcast_to(known, self.shape)


def _mul(given: _Operands) -> Score | Product | None:
  for i in (0, 1):
    scaled = _scaled(given, i, 1 - i, np.multiply)
    if scaled is not None:
      return scaled
    product, table = given.product(i), given.table(1 - i)
    if product is not None and table is not None:
      return product._replace(weight=product.weight * table)
    thin = given.thin(1 - i)
    if product is not None and thin is not None:
      more = factor(thin, product.letters)
      return product._replace(factors=(*product.factors, more))
  return None


def _div(given: _Operands) -> Score | Product | None:
  scaled = _scaled(given, 0, 1, np.divide)
  product, table, thin = given.product(0), given.table(1), given.thin(1)
  if scaled is not None or product is None:
    return scaled
  if table is not None:
    with np.errstate(all='ignore'):
      return product._replace(weight=product.weight / table)
  if thin is None:
    return None
  more = factor(1 / thin, product.letters)
  return product._replace(factors=(*product.factors, more))


def _scaled(given: _Operands, i: int, j: int, by: Any) -> Score | None:
  """A masked score times what is the same at all positions."""
  score, scale = given.ins[i].form, given.thin(j)
  if not isinstance(score, Score) or given.ins[j].known is None:
    return None
  positions = [n for n in np.shape(scale) if n == given.length]
  if scale is None or positions:
    return None
  number = scale.astype(np.float32)
  row = None if score.row is None else by(score.row, number)
  with np.errstate(all='ignore'):
    return score._replace(
      column=by(score.column, number), bias=by(score.bias, number), row=row
    )


def _add(given: _Operands) -> Score | None:
  for i in (0, 1):
    score, table = given.score(i), given.table(1 - i)
    if score is not None and table is not None:
      return score._replace(bias=score.bias + table)
  one, two = given.score(0), given.score(1)
  if one is None or two is None:
    return None
  if isinstance(given.ins[1].form, Score):
    one, two = two, one
  return _less(one, -two.column) if two.row is None else None


def _sub(given: _Operands) -> Score | None:
  score, table, thin = given.score(0), given.table(1), given.thin(1)
  if score is None or thin is None and table is None:
    return None
  if table is not None:
    return score._replace(bias=score.bias - table)
  return _less(score, thin)


def _less(score: Score, row: Any) -> Score:
  return score._replace(row=row if score.row is None else score.row + row)


def _select(given: _Operands) -> Score | Product | None:
  """A mask: what is chosen by a constant, and a constant elsewhere."""
  which = given.table(0)
  if which is None or len(given.ins) != 3:
    return None
  for case in (1, 2):
    chosen, other = which == case - 1, given.table(3 - case)
    if other is None or given.ins[case].known is not None:
      continue
    hidden = other[~chosen]
    score, product = given.score(case), given.product(case)
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
  """The constant part of a score, -inf where it is a mask."""
  bias = np.where(bias < -folding.FAR, -np.inf, bias)
  return np.ascontiguousarray(bias, np.float32)


def _exponential(score: Score) -> Product:
  """Without a row to be less, exp(column) is a factor like any other."""
  bias = masked(score.bias)
  if score.row is None:
    column = factor(jnp.exp(score.column), score.letters)
    return Product(np.exp(bias), score.letters, (column,))
  seen = (bias > -np.inf).astype(np.float32)
  return Product(seen, score.letters, (), score)


def contraction(
  params: Any, one: str, taken: str, two: Shape, side: int
) -> tuple[str, str]:
  """Letters of the other operand, of shape `two`, and of the result.

  The operand on `side` has the letters `one`; new ones are not among `taken`.
  """
  contracted, batch = params['dimension_numbers']
  mine = (*contracted[side], *batch[side])
  theirs = (*contracted[1 - side], *batch[1 - side])
  other = list(unused(len(two), one, taken))
  for i, j in zip(mine, theirs, strict=True):
    other[j] = one[i]
  lead = [one[i] for i in batch[side]]
  rest = [
    [c for i, c in enumerate(text) if i not in taken]
    for text, taken in ((one, mine), (other, theirs))
  ]
  rest = rest if side == 0 else rest[::-1]
  return ''.join(other), ''.join([*lead, *rest[0], *rest[1]])


def _outer(params: Any, ins: Sequence[Value], shape: Shape) -> Product | None:
  """Q K^T: its two factors share letters that the table has not."""
  if any(v.known is not None for v in ins):
    return None
  one = letters_of(len(ins[0].shape))
  two, out = contraction(params, one, '', ins[1].shape, 0)
  factors = Factor(ins[0].array, one), Factor(ins[1].array, two)
  return Product(np.ones(shape, np.float32), out, factors)


def seen(product: Product) -> Array | None:
  """The bias of a product's score, -inf where the product is zero as well.

  None where the product's zeros differ along axes that the score has not.
  """
  score = product.score
  if score is None:
    return None
  zero, letters = product.weight == 0, product.letters
  for c in [c for c in letters if c not in score.letters]:
    axis = letters.index(c)
    part = zero.take([0], axis)
    if np.any(part != zero):
      return None
    zero, letters = part.squeeze(axis), letters.replace(c, '')
  if len(letters) != len(score.letters):
    return None
  zero = zero.transpose([letters.index(c) for c in score.letters])
  return masked(np.where(zero, -np.inf, score.bias))


def _moved(
  name: str, params: Any, value: Value, shape: Shape
) -> Score | Product | None:
  """Axes of a table in another order, or more of them."""
  table = value.form
  if table is None:
    return None
  if name == 'transpose':
    order = tuple(params['permutation'])
    turn = lambda a: a.transpose(order)
    letters = ''.join(table.letters[i] for i in order)
  elif name == 'squeeze':
    gone = tuple(params['dimensions'])
    turn = lambda a: a.squeeze(gone)
    letters = ''.join(c for i, c in enumerate(table.letters) if i not in gone)
  else:
    dims = tuple(params['broadcast_dimensions'])
    fresh = unused(len(shape), *_taken(table))
    letters = ''.join(
      table.letters[dims.index(i)] if i in dims else c
      for i, c in enumerate(fresh)
    )
    turn = lambda a: a.reshape(spread(a.shape, dims, len(shape)))
  if isinstance(table, Product):
    weight = np.broadcast_to(turn(table.weight), shape)
    return table._replace(weight=weight, letters=letters)
  row = None if table.row is None else turn(table.row)
  bias = np.broadcast_to(turn(table.bias), shape)
  return Score(turn(table.column), bias, row, letters)


def _taken(table: Score | Product) -> list[str]:
  if isinstance(table, Score):
    return [table.letters]
  inner = [] if table.score is None else [table.score.letters]
  return [table.letters, *(f.letters for f in table.factors), *inner]


def spread(sizes: Shape, dims: Sequence[int], rank: int) -> Shape:
  """Sizes at their places among axes of size 1."""
  out = [1] * rank
  for size, axis in zip(sizes, dims, strict=True):
    out[axis] = size
  return tuple(out)
