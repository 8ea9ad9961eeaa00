"""Sums over the past that are written as a masked product, as a loop.

(W * (Q K^T)) V with a constant lower-triangular W whose rows are multiples of
each other, W[t, s] = r[t] W[t - 1, s], is the recurrence

  S[t] = r[t] S[t - 1] + W[t, t] k[t] v[t]^T,   y[t] = q[t] S[t]

(linear attention, arXiv 2006.16236, section 3.4; RetNet, arXiv 2307.08621,
equations 5 and 6): one state in place of two streams. So is W V alone, a mean
of all before. The program is interpreted with every such product replaced, and
compared with itself on numbers before the replacement is used.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

from kvjax.liveness import control, native

Array = np.ndarray
Program = Callable[..., Any]


class _Product(NamedTuple):
  """`weight * einsum(letters, left, right)`, the weight a constant."""

  left: Any
  right: Any
  letters: tuple[str, str, str]  # of left, right and result
  weight: Array  # of the result's shape


class _Value(NamedTuple):
  """One array of the program; `known` where it does not depend on the input."""

  array: Any
  known: Array | None = None
  product: _Product | None = None


def recurrent(
    program: Program, x: Any, axis: int
) -> tuple[Program, tuple[str, ...]]:
  """Returns the program with loops for masked products, and where they were.

  It is the program itself where there are none, or where the two differ.
  """
  if not _promising(jax.make_jaxpr(program)(x).jaxpr, x.shape[axis]):
    return program, ()
  found: list[str] = []
  rewritten = _rewriting(program, axis, found)
  jax.eval_shape(rewritten, x)
  notes = tuple(dict.fromkeys(found))
  if not notes or not _alike(program, rewritten, x):
    return program, ()
  return rewritten, notes


def _rewriting(program: Program, axis: int, found: list[str]) -> Program:
  def run(x: Any) -> Any:
    closed, shape = jax.make_jaxpr(program, return_shape=True)(x)
    reader = _Reader(x.shape[axis], found)
    consts = [_Value(c, _plain(c)) for c in closed.consts]
    outs = reader.run(closed.jaxpr, consts, [_Value(x)])
    return jax.tree.unflatten(
        jax.tree.structure(shape), [v.array for v in outs]
    )

  return run


def _plain(value: Any) -> Array | None:
  if jnp.issubdtype(value.dtype, jax.dtypes.extended):
    return None
  return np.asarray(value)


def _promising(jaxpr: Any, length: int) -> bool:
  """Whether some constant or product has two axes of positions."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
      if any(shape.count(length) >= 2 for shape in shapes):
        return True
    if any(_promising(j, length) for j in core.jaxprs_in_params(eqn.params)):
      return True
  return False


def _alike(program: Program, other: Program, x: Any) -> bool:
  pairs = zip(
      jax.tree.leaves(program(x)), jax.tree.leaves(other(x)), strict=True
  )
  return all(
      np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max(initial=1e-9))
      for a, b in pairs
  )


class _Reader:
  """Interprets a jaxpr and follows products of two tensors of the input."""

  def __init__(self, length: int, found: list[str]) -> None:
    self.length, self.found = length, found

  def run(
      self, jaxpr: Any, consts: Sequence[_Value], args: Sequence[_Value]
  ) -> list[_Value]:
    env: dict[Any, _Value] = {}

    def read(v: Any) -> _Value:
      if isinstance(v, core.Literal):
        return _Value(v.val, np.asarray(v.val))
      return env[v]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
      with source_info_util.user_context(eqn.source_info.traceback):
        outs = self.equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn: Any, ins: list[_Value]) -> list[_Value]:
    name, params = eqn.primitive.name, eqn.params
    if name in control.CALLS:
      body, consts = control.body_of(params)
      inner = [_Value(c.const, _plain(c.const)) for c in consts]
      return self.run(body, inner, ins[len(ins) - len(body.invars) :])
    if all(v.known is not None for v in ins) and name != 'name':
      with jax.ensure_compile_time_eval(), np.errstate(all='ignore'):
        made = native.evaluate(eqn.primitive, params, [v.known for v in ins])
      return [_Value(m, _plain(m)) for m in made]
    shape = eqn.outvars[0].aval.shape
    summed = self.summed(eqn, ins)
    if summed is not None:
      return [_Value(summed)]
    extra, bound = (), eqn.primitive.get_bind_params(params)
    if isinstance(bound, tuple):
      extra, bound = bound
    out = eqn.primitive.bind(*extra, *(v.array for v in ins), **bound)
    outs = list(out) if eqn.primitive.multiple_results else [out]
    product = _followed(name, params, ins, shape)
    return [_Value(o, None, product) for o in outs]

  def summed(self, eqn: Any, ins: list[_Value]) -> Any:
    """The equation as a loop, where it sums a masked product over the past."""
    name, params = eqn.primitive.name, eqn.params
    made = None
    if name == 'dot_general':
      letters = _letters(params, [np.ndim(v.array) for v in ins])
      for a in (0, 1):
        if made is None and ins[1 - a].known is None:
          weight = _weight(ins[a], letters[a])
          value, theirs = ins[1 - a].array, letters[1 - a]
          made = _sum(weight, value, theirs, letters[2], self.length)
    elif name == 'reduce_sum' and ins[0].product is not None:
      axes = string.ascii_lowercase[: np.ndim(ins[0].array)]
      kept = ''.join(c for i, c in enumerate(axes) if i not in params['axes'])
      made = _sum(_weight(ins[0], axes), None, '', kept, self.length)
    if made is None:
      return None
    frame = source_info_util.summarize(eqn.source_info)
    self.found.append(f'{frame}: a masked product as a sum over the past.')
    return made.astype(eqn.outvars[0].aval.dtype)


def _letters(params: Any, ranks: Sequence[int]) -> tuple[str, str, str]:
  """A product of two arrays as an einsum."""
  (left, right), (one, two) = params['dimension_numbers']
  names = iter(string.ascii_lowercase)
  a = [next(names) for _ in range(ranks[0])]
  b = [''] * ranks[1]
  for mine, theirs in zip((*left, *one), (*right, *two), strict=True):
    b[theirs] = a[mine]
  b = [letter or next(names) for letter in b]
  batch = [a[i] for i in one]
  free = [c for i, c in enumerate(a) if i not in left and i not in one]
  free += [c for i, c in enumerate(b) if i not in right and i not in two]
  return ''.join(a), ''.join(b), ''.join([*batch, *free])


def _weight(value: _Value, letters: str) -> _Product | None:
  """A factor of a sum with its axes in the sum's own letters."""
  if value.product is None:
    if value.known is None or value.known.ndim < 2:
      return None
    return _Product(None, None, ('', '', letters), value.known)
  one, two, out = value.product.letters
  table = dict(zip(out, letters, strict=True))
  table |= {c: c.upper() for c in one + two if c not in table}
  rename = lambda text: ''.join(table[c] for c in text)
  return value.product._replace(letters=(rename(one), rename(two), letters))


def _followed(
    name: str, params: Any, ins: Sequence[_Value], shape: tuple[int, ...]
) -> _Product | None:
  """What is still a product of two tensors times a constant."""
  if name == 'dot_general' and all(v.known is None for v in ins):
    letters = _letters(params, [np.ndim(v.array) for v in ins])
    ones = np.ones(shape, np.float32)
    return _Product(ins[0].array, ins[1].array, letters, ones)
  product = next((v.product for v in ins if v.product is not None), None)
  if product is None:
    return None
  if name in ('name', 'convert_element_type', 'copy'):
    return product
  if name == 'transpose':
    one, two, out = product.letters
    order = params['permutation']
    turned = ''.join(out[i] for i in order)
    weight = product.weight.transpose(order)
    return product._replace(letters=(one, two, turned), weight=weight)
  scale = _scale(name, ins)
  if scale is None:
    return None
  return product._replace(weight=product.weight * np.broadcast_to(scale, shape))


def _scale(name: str, ins: Sequence[_Value]) -> Array | None:
  """The constant that a product is multiplied by."""
  known = [v.known for v in ins]
  if name == 'mul':
    return known[0] if known[0] is not None else known[1]
  if name == 'div' and ins[0].product is not None:
    return None if known[1] is None else 1 / known[1]
  if name == 'select_n' and len(ins) == 3 and known[0] is not None:
    for case in (1, 2):
      other = known[3 - case]
      if ins[case].product is not None and other is not None:
        if not np.any(np.where(known[0] == case - 1, 0, other)):
          return (known[0] == case - 1).astype(np.float32)
  return None


def _sum(
    factor: _Product | None,
    value: Any,
    theirs: str,
    out: str,
    length: int,
) -> Any:
  """The loop; None where the factor is no multiple of its row before."""
  if factor is None:
    return None
  one, two, mine = factor.letters
  gone = [c for c in mine if c not in out]
  if len(gone) != 1 or factor.weight.shape[mine.index(gone[0])] != length:
    return None
  s = gone[0]
  if s in one:
    factor = factor._replace(left=factor.right, right=factor.left)
    one, two = two, one
  batch = [c for c in one if c in two and c in mine]
  rows = [c for c in mine if c in one and c not in two] if one else mine
  rows = [
      c for c in rows if c != s and factor.weight.shape[mine.index(c)] == length
  ]
  if len(rows) != 1 or (
      one and (s not in two or len(two) != _own(two, one, s))
  ):
    return None
  t = rows[0]
  keep = ''.join(batch if one else (c for c in mine if c not in (s, t)))
  found = _ratios(factor.weight, mine, keep, t, s)
  if found is None or (theirs and s not in theirs):
    return None
  return _loop(factor, (one, two, theirs, out), (t, s, keep), found, value)


def _own(two: str, one: str, s: str) -> int:
  """Axes of the summed side that a state can hold: shared ones, and its own."""
  return sum(c in one or c == s for c in two)


def _ratios(
    weight: Array, mine: str, keep: str, t: str, s: str
) -> tuple[Array, Array] | None:
  """[T, keep] of a row over the one before, and the diagonal; or None."""
  order = [mine.index(c) for c in (t, s, *keep)]
  rest = [i for i in range(len(mine)) if i not in order]
  table = weight.transpose([*order, *rest]).astype(np.float64)
  table = table.reshape(*table.shape[: len(order)], -1)
  if np.any(table != table[..., :1]):
    return None
  table = table[..., 0]
  length = len(table)
  own = np.stack([table[i, i] for i in range(length)])
  if not np.all(own) or np.any(table[np.triu_indices(length, 1)]):
    return None
  ratio = np.ones_like(own)
  for i in range(1, length):
    ratio[i] = table[i, i - 1] / own[i - 1]
  made = np.zeros_like(table)
  for i in range(length):
    made[i] = made[i - 1] * ratio[i] if i else 0
    made[i, i] = own[i]
  return (ratio, own) if np.allclose(made, table, 1e-3, 1e-5) else None


def _loop(
    factor: _Product,
    letters: tuple[str, str, str, str],
    axes: tuple[str, str, str],
    weights: tuple[Array, Array],
    value: Any,
) -> Any:
  """Runs S = r S + w k v, y = q S over positions."""
  one, two, theirs, out = letters
  t, s, keep = axes
  without = lambda text, c: text.replace(c, '')
  k, v, q = without(two, s), without(theirs, s), without(one, t)
  state = ''.join(dict.fromkeys(keep + k + v))
  row = without(out, t)
  turned = lambda array, text, c: jnp.moveaxis(array, text.index(c), 0)
  columns = [
      jnp.asarray(w, jnp.float32).astype(_dtype(factor, value)) for w in weights
  ]
  columns += [turned(factor.right, two, s)] if two else []
  columns += [turned(value, theirs, s)] if theirs else []
  columns += [turned(factor.left, one, t)] if one else []
  terms = ','.join([keep, *([k] if two else []), *([v] if theirs else [])])

  def step(held: Any, new: Any) -> tuple[Any, Any]:
    ratio, own, *parts = new
    asked = parts.pop() if one else None
    added = jnp.einsum(f'{terms}->{state}', own, *parts)
    held = jnp.einsum(f'{keep},{state}->{state}', ratio, held) + added
    if asked is None:
      return held, jnp.einsum(f'{state}->{row}', held)
    return held, jnp.einsum(f'{q},{state}->{row}', asked, held)

  start = jax.eval_shape(
      lambda *parts: jnp.einsum(f'{terms}->{state}', *parts),
      *(c[0] for c in columns[1 : len(columns) - bool(one)]),
  )
  _, y = jax.lax.scan(step, jnp.zeros(start.shape, start.dtype), tuple(columns))
  return jnp.moveaxis(y, 0, out.index(t))


def _dtype(factor: _Product, value: Any) -> Any:
  parts = [p for p in (factor.left, factor.right, value) if p is not None]
  return jnp.result_type(*parts)
