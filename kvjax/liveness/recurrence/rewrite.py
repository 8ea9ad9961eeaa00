"""Sums over the past that are written as a masked product, as a loop.

(W * (Q K^T)) V with a constant lower-triangular W whose rows are multiples of
each other is one state in place of two streams (`running`). So is W V alone, a
mean of all before, and so is a masked softmax of scores that do not depend on
the query's row: its maximum, its sum and its mixture run on. The program is
interpreted with every such product and maximum replaced, and compared with
itself on numbers before the replacement is used.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

from kvjax.liveness.decoder.one_row import bind
from kvjax.liveness.program import control_flow, evaluate, folding
from kvjax.liveness.program import jaxpr as opening
from kvjax.liveness.recurrence import loops, tables
from kvjax.liveness.recurrence.loops import Factor
from kvjax.liveness.recurrence.tables import Product, Score, Value

Array = np.ndarray
Program = Callable[..., Any]
_REDUCTIONS = frozenset(('reduce_sum', 'reduce_max', 'reduce_min'))


def recurrent(
  program: Program, x: Any, axis: int
) -> tuple[Program, tuple[str, ...]]:
  """Returns the program with loops for masked products, and where they were.

  It is the program itself where there are none, or where the two differ.
  """
  if not _promising(opening.jaxpr_of(program, x).jaxpr, x.shape[axis]):
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
    consts = [Value(c, _plain(c)) for c in closed.consts]
    outs = reader.run(closed.jaxpr, consts, [Value(x)])
    return jax.tree.unflatten(
      jax.tree.structure(shape), [v.array for v in outs]
    )

  return run


def _plain(value: Any) -> Array | None:
  if jnp.issubdtype(value.dtype, jax.dtypes.extended):
    return None
  return np.asarray(value)


def _promising(jaxpr: Any, length: int) -> bool:
  """Whether something with two axes of positions is summed."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('dot_general', *_REDUCTIONS):
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
  """Interprets a jaxpr and follows tables of queries by keys."""

  def __init__(self, length: int, found: list[str]) -> None:
    self.length, self.found = length, found
    # By column and bias; the column is held, so that its id stays its own.
    self.peaks: dict[Any, tuple[Any, loops.Peak]] = {}

  def run(
    self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]
  ) -> list[Value]:
    env: dict[Any, Value] = {}

    def read(v: Any) -> Value:
      if isinstance(v, core.Literal):
        return Value(v.val, np.asarray(v.val))
      return env[v]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
      with source_info_util.user_context(eqn.source_info.traceback):
        outs = self.equation(eqn, [read(v) for v in eqn.invars])
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    if name in control_flow.CALLS:
      body, consts = control_flow.body_of(params)
      return self.run(body, _consts(consts), ins[len(ins) - len(body.invars) :])
    if all(v.known is not None for v in ins) and name != 'name':
      with jax.ensure_compile_time_eval(), np.errstate(all='ignore'):
        made = evaluate.evaluate(eqn.primitive, params, [v.known for v in ins])
      return [Value(m, _plain(m)) for m in made]
    if name == 'scan':
      body, consts = control_flow.open_jaxpr(params['jaxpr'])
      if _promising(body, self.length):
        return self.scanned(params, body, _consts(consts), ins)
    looped = self.looped(eqn, ins)
    if looped is not None:
      return [looped]
    outs = bind(eqn.primitive, params, [v.array for v in ins])
    if len(outs) > 1:
      return [Value(o) for o in outs]
    shape = eqn.outvars[0].aval.shape
    thin = self.thin(eqn, ins, shape)
    form = None
    if thin is None:
      form = tables.form(name, params, ins, shape, self.length)
    return [Value(outs[0], None, thin, form)]

  def scanned(
    self, params: Any, body: Any, consts: list[Value], ins: list[Value]
  ) -> list[Value]:
    """A loop over heads or layers, with loops over positions in its body."""
    a, carried = control_flow.scan_counts(params)
    shared, given = ins[:a], _arrays([v.array for v in ins[a:]])
    inner = _Reader(self.length, self.found)

    def step(carry: Any, columns: Any) -> tuple[Any, Any]:
      moving = [Value(array) for array in (*carry, *columns)]
      out = [v.array for v in inner.run(body, consts, [*shared, *moving])]
      return out[:carried], out[carried:]

    carry, ys = jax.lax.scan(
      step,
      given[:carried],
      given[carried:],
      params['length'],
      params['reverse'],
    )
    return [Value(array) for array in (*carry, *ys)]

  def looped(self, eqn: Any, ins: list[Value]) -> Value | None:
    """The equation as a loop, where it sums a table over the past."""
    name, params = eqn.primitive.name, eqn.params
    shape, form = eqn.outvars[0].aval.shape, ins[0].form
    made = None
    if name == 'dot_general':
      for side in (0, 1):
        made = made or self.mixture(params, ins, side)
    elif name == 'reduce_sum' and isinstance(form, Product):
      out = _without(form.letters, params['axes'])
      made = self.summed(form, (), out, _sizes(form.letters, ins[0].shape))
    elif name == 'reduce_max' and isinstance(form, Score):
      made = self.greatest(form, params['axes'], ins[0].shape)
    if made is None:
      return None
    found, out = made
    frame = source_info_util.summarize(eqn.source_info)
    what = 'maximum' if name == 'reduce_max' else 'sum'
    self.found.append(f'{frame}: a masked product as a {what} over the past.')
    thin = _placed(found, out).astype(eqn.outvars[0].aval.dtype)
    return Value(jnp.broadcast_to(thin, shape), None, thin)

  def mixture(
    self, params: Any, ins: list[Value], side: int
  ) -> tuple[Factor, str] | None:
    """Weights on one side, what they mix on the other."""
    weights, other = ins[side], ins[1 - side]
    form = weights.form
    if weights.known is not None and weights.known.ndim > 1:
      letters = tables.letters_of(weights.known.ndim)
      form = Product(weights.known, letters)
    if not isinstance(form, Product):
      return None
    taken = ''.join(f.letters for f in form.factors)
    theirs, out = tables.contraction(
      params, form.letters, taken, other.shape, side
    )
    thin = tables.thinnest(other, self.length)
    sizes = _sizes(form.letters + theirs, weights.shape + other.shape)
    return self.summed(form, (tables.factor(thin, theirs),), out, sizes)

  def summed(
    self,
    product: Product,
    others: Sequence[Factor],
    out: str,
    sizes: dict[str, int],
  ) -> tuple[Factor, str] | None:
    """A sum of the product, times others, over all letters but `out`."""
    long = [c for c in product.letters if sizes[c] == self.length]
    for t in (c for c in long if c in out):
      for s in (c for c in long if c not in out):
        parts = self.parts(product, others, t + s)
        if parts is not None:
          held = ''.join(f.letters for part in parts for f in part)
          lost = [c for c in sizes if c not in out + s + held and sizes[c] > 1]
          return None if lost else (loops.total(*parts, out, t + s), out)
    return None

  def parts(
    self, product: Product, others: Sequence[Factor], axes: str
  ) -> tuple[list[Factor], list[Factor], list[Factor]] | None:
    """What a state is multiplied by, what is added to it, who asks it."""
    t, s = axes
    found = loops.multiples(Factor(product.weight, product.letters), axes)
    factors = [*product.factors, *others]
    if found is None or any(t in f.letters and s in f.letters for f in factors):
      return None
    ratios, owns = ([f] if np.any(f.array != 1) else [] for f in found)
    columns = owns + [f for f in factors if s in f.letters]
    rows = [f for f in factors if s not in f.letters]
    if product.score is not None:
      row = tables.factor(product.score.row, product.score.letters)
      peak = self.peak(product.score, tables.seen(product), axes)
      if peak is None or s in row.letters:
        return None
      ratios, columns = [*ratios, peak.ratio], [*columns, peak.own]
      rows.append(loops.above(peak.high, row, t))
    return (ratios, columns, rows) if columns else None

  def greatest(
    self, score: Score, axes: Sequence[int], shape: tuple[int, ...]
  ) -> tuple[Factor, str] | None:
    """The running maximum of a masked score."""
    out = _without(score.letters, axes)
    sizes = _sizes(score.letters, shape)
    if len(axes) != 1 or score.row is not None:
      return None
    s = score.letters[axes[0]]
    for t in out:
      if sizes[t] == sizes[s] == self.length:
        peak = self.peak(score, tables.masked(score.bias), t + s)
        if peak is not None:
          return peak.high, out
    return None

  def peak(
    self, score: Score, bias: Array | None, axes: str
  ) -> loops.Peak | None:
    if bias is None:
      return None
    key = id(score.column), bias.tobytes(), score.letters, axes
    if key not in self.peaks:
      column = tables.factor(score.column, score.letters)
      found = loops.differences(Factor(bias, score.letters), axes)
      if found is None or axes[0] in column.letters:
        return None
      if axes[1] not in column.letters:
        return None
      made = loops.maximum(column, *found, axes)
      self.peaks[key] = score.column, made
    return self.peaks[key][1]

  def thin(self, eqn: Any, ins: list[Value], shape: tuple[int, ...]) -> Any:
    """The result computed once for all positions that are alike, or None."""
    name, params = eqn.primitive.name, eqn.params
    if name in ('name', 'copy', 'stop_gradient'):
      return ins[0].thin
    parts = [tables.thinnest(v, self.length) for v in ins]
    if name == 'dot_general':
      parts = _full_where_summed(params, parts, [v.shape for v in ins])
      few = any(
        n == 1 and m == self.length
        for p, v in zip(parts, ins, strict=True)
        for n, m in zip(np.shape(p), v.shape, strict=True)
      )
    elif name == 'broadcast_in_dim':
      sizes, dims = np.shape(parts[0]), params['broadcast_dimensions']
      small = tables.spread(sizes, dims, len(shape))
      few = _few(small, shape, self.length)
      params = params | {'shape': small}
    elif name in folding.POINTWISE:
      small = np.broadcast_shapes(*map(np.shape, parts))
      few = _few(small, shape, self.length)
      parts = [p if np.ndim(p) == 0 else _widened(p, small) for p in parts]
    else:
      few = name in ('transpose', 'squeeze', *_REDUCTIONS)
      few &= ins[0].thin is not None
      gone = params.get('axes', ()) if name in _REDUCTIONS else ()
      few &= all(np.shape(parts[0])[a] == ins[0].shape[a] for a in gone)
    return bind(eqn.primitive, params, _arrays(parts))[0] if few else None


def _few(small: tuple[int, ...], shape: tuple[int, ...], length: int) -> bool:
  pairs = zip(small, shape, strict=len(small) == len(shape))
  return any(n == 1 and m == length for n, m in pairs) and bool(small)


def _full_where_summed(
  params: Any, parts: Sequence[Any], shapes: Sequence[tuple[int, ...]]
) -> list[Any]:
  """Operands that are thin along their free axes only."""
  out = []
  for side, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
    paired = [a for axes in params['dimension_numbers'] for a in axes[side]]
    size = tuple(
      m if a in paired else n
      for a, (n, m) in enumerate(zip(np.shape(part), shape, strict=True))
    )
    out.append(_widened(part, size))
  return out


def _widened(part: Any, shape: tuple[int, ...]) -> Any:
  return part if np.shape(part) == shape else jnp.broadcast_to(part, shape)


def _arrays(parts: Sequence[Any]) -> list[Any]:
  return [p if isinstance(p, jax.Array) else jnp.asarray(p) for p in parts]


def _consts(consts: Sequence[Any]) -> list[Value]:
  return [Value(c.const, _plain(c.const)) for c in consts]


def _sizes(letters: str, shape: tuple[int, ...]) -> dict[str, int]:
  return dict(zip(letters, shape, strict=True))


def _without(letters: str, axes: Sequence[int]) -> str:
  return ''.join(c for i, c in enumerate(letters) if i not in axes)


def _placed(found: Factor, out: str) -> Any:
  """The array with its letters in the order of `out`, of size 1 if missing."""
  order = [found.letters.index(c) for c in out if c in found.letters]
  missing = [i for i, c in enumerate(out) if c not in found.letters]
  return jnp.expand_dims(jnp.transpose(found.array, order), missing)
