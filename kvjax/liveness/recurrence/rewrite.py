"""Sums over the past that are written as a masked product, as a loop.

(W * (Q K^T)) V with a constant lower-triangular W whose rows are multiples of
each other is one state in place of two streams (`loops`). So is W V alone, a
mean of all rows before, and so is a masked softmax of scores that do not depend
on the query's row: its maximum, its sum and its mixture are running ones. The
program is interpreted with every such product and maximum replaced. The
replacement is used only if both programs agree on numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

from kvjax.liveness.program import folding, jaxprs, primitives
from kvjax.liveness.program.scalars import Shape
from kvjax.liveness.recurrence import loops, tables
from kvjax.liveness.recurrence.loops import Factor
from kvjax.liveness.recurrence.tables import MaskedScore, Product, TrackedArray

Array = np.ndarray
Program = Callable[..., Any]
_REDUCTIONS = frozenset(('reduce_sum', 'reduce_max', 'reduce_min'))


def replace_sums(
  program: Program, x: Any, axis: int
) -> tuple[Program, tuple[str, ...]]:
  """Returns the program with loops for masked products, and notes on each.

  It is `program` itself where nothing is replaced, or where the two differ on
  numbers.
  """
  if not _sums_tables(jaxprs.jaxpr_of(program, x).jaxpr, x.shape[axis]):
    return program, ()
  notes: list[str] = []
  rewritten = _rewrite(program, axis, notes)
  jax.eval_shape(rewritten, x)
  distinct = tuple(dict.fromkeys(notes))
  if not distinct or not _agree(program, rewritten, x):
    return program, ()
  return rewritten, distinct


def _rewrite(program: Program, axis: int, notes: list[str]) -> Program:
  def run(x: Any) -> Any:
    closed, shape = jax.make_jaxpr(program, return_shape=True)(x)
    rewriter = _Rewriter(x.shape[axis], notes)
    outs = rewriter.run(closed.jaxpr, closed.consts, [TrackedArray(x)])
    return jax.tree.unflatten(
      jax.tree.structure(shape), [v.array for v in outs]
    )

  return run


def _constant(value: Any) -> TrackedArray:
  extended = primitives.is_extended(value)
  return TrackedArray(value, None if extended else np.asarray(value))


def _sums_tables(jaxpr: Any, length: int) -> bool:
  """Returns whether something with two axes of positions is summed."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('dot_general', *_REDUCTIONS):
      shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
      if any(shape.count(length) >= 2 for shape in shapes):
        return True
    if any(_sums_tables(j, length) for j in jaxprs.nested(eqn)):
      return True
  return False


def _agree(program: Program, other: Program, x: Any) -> bool:
  """Returns whether two programs agree on `x`, up to float32 rounding."""
  pairs = zip(
    jax.tree.leaves(program(x)), jax.tree.leaves(other(x)), strict=True
  )
  return all(
    np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max(initial=1e-9))
    for a, b in pairs
  )


class _Rewriter:
  """Interprets a jaxpr and follows tables of queries by keys."""

  def __init__(self, length: int, notes: list[str]) -> None:
    self.length = length
    self.notes = notes
    # By column and bias. The value includes the column, because the key has its
    # id, which Python may give to another array once the column is freed.
    self.peaks: dict[Any, tuple[Any, loops.Peak]] = {}

  def run(
    self, jaxpr: Any, consts: Sequence[Any], args: Sequence[TrackedArray]
  ) -> list[TrackedArray]:
    """Returns the results of a jaxpr, with loops for sums of tables."""

    def run_equation(
      _: int, eqn: Any, ins: list[TrackedArray]
    ) -> list[TrackedArray]:
      # Without the context every equation would have this line as its source.
      with source_info_util.user_context(eqn.source_info.traceback):
        return self.equation(eqn, ins)

    return jaxprs.interpret(jaxpr, consts, args, run_equation, _constant)

  def equation(self, eqn: Any, ins: list[TrackedArray]) -> list[TrackedArray]:
    name = eqn.primitive.name
    params = eqn.params
    if name in jaxprs.CALLS:
      body, consts = jaxprs.open_call(params)
      return self.run(body, consts, ins[len(ins) - len(body.invars) :])
    if all(v.known is not None for v in ins) and name != 'name':
      constants = [v.known for v in ins]
      with jax.ensure_compile_time_eval():
        outs = primitives.evaluate(eqn.primitive, params, constants)
      return [_constant(o) for o in outs]
    if name == 'scan':
      body, _ = jaxprs.open_jaxpr(params['jaxpr'])
      if _sums_tables(body, self.length):
        return self.scan(params, ins)
    loop = self.loop(eqn, ins)
    if loop is not None:
      return [loop]
    outs = primitives.bind(eqn.primitive, params, [v.array for v in ins])
    if len(outs) > 1:
      return [TrackedArray(o) for o in outs]
    shape = eqn.outvars[0].aval.shape
    thin = self.thin(eqn, ins, shape)
    form = None
    if thin is None:
      form = tables.form(name, params, ins, shape, self.length)
    return [TrackedArray(outs[0], None, thin, form)]

  def scan(self, params: Any, ins: list[TrackedArray]) -> list[TrackedArray]:
    """Runs a loop over heads or layers that has loops over positions in it."""
    body, consts = jaxprs.open_jaxpr(params['jaxpr'])
    shared, carry, columns = jaxprs.split_scan(params, ins)
    carried = len(carry)
    inner = _Rewriter(self.length, self.notes)

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
      args = [TrackedArray(array) for array in (*carry, *row)]
      out = [v.array for v in inner.run(body, consts, [*shared, *args])]
      return out[:carried], out[carried:]

    after, ys = jax.lax.scan(
      step,
      _arrays([v.array for v in carry]),
      _arrays([v.array for v in columns]),
      params['length'],
      params['reverse'],
    )
    return [TrackedArray(array) for array in (*after, *ys)]

  def loop(self, eqn: Any, ins: list[TrackedArray]) -> TrackedArray | None:
    """Returns the equation as a loop, where it sums a table over the past."""
    name = eqn.primitive.name
    params = eqn.params
    form = ins[0].form
    result = None
    if name == 'dot_general':
      for side in (0, 1):
        result = result or self.mixture(params, ins, side)
    elif name == 'reduce_sum' and isinstance(form, Product):
      out = _without(form.letters, params['axes'])
      result = self.sum(form, (), out, _sizes(form.letters, ins[0].shape))
    elif name == 'reduce_max' and isinstance(form, MaskedScore):
      result = self.maximum(form, params['axes'], ins[0].shape)
    if result is None:
      return None
    total, letters = result
    what = 'maximum' if name == 'reduce_max' else 'sum'
    note = f'a masked product as a {what} over the past.'
    self.notes.append(f'{jaxprs.source(eqn)}: {note}')
    aval = eqn.outvars[0].aval
    thin = loops.with_axes(total, letters).astype(aval.dtype)
    return TrackedArray(jnp.broadcast_to(thin, aval.shape), None, thin)

  def mixture(
    self, params: Any, ins: list[TrackedArray], side: int
  ) -> tuple[Factor, str] | None:
    """Returns a product of weights on one side with what the weights mix."""
    weights = ins[side]
    other = ins[1 - side]
    form = weights.form
    if weights.known is not None and weights.known.ndim > 1:
      letters = tables.letters_of(weights.known.ndim)
      form = Product(weights.known, letters)
    if not isinstance(form, Product):
      return None
    taken = ''.join(f.letters for f in form.factors)
    letters, out = tables.contraction(
      params, form.letters, taken, other.shape, side
    )
    thin = tables.thinnest(other, self.length)
    sizes = _sizes(form.letters + letters, weights.shape + other.shape)
    return self.sum(form, (tables.factor(thin, letters),), out, sizes)

  def sum(
    self,
    product: Product,
    others: Sequence[Factor],
    out: str,
    sizes: dict[str, int],
  ) -> tuple[Factor, str] | None:
    """Returns a sum over all letters but `out`, or None.

    Args:
      product: a table.
      others: factors that multiply it.
      out: letters of the result.
      sizes: of all letters.
    """
    long = [c for c in product.letters if sizes[c] == self.length]
    for t in (c for c in long if c in out):
      for s in (c for c in long if c not in out):
        parts = self.parts(product, others, t + s)
        if parts is not None:
          factors = (*parts.ratios, *parts.columns, *parts.rows)
          letters = out + s + ''.join(f.letters for f in factors)
          # A sum over a letter that no factor has is a multiple: no loop.
          if any(n > 1 and c not in letters for c, n in sizes.items()):
            return None
          return loops.run_sum(parts, out, t + s), out
    return None

  def parts(
    self, product: Product, others: Sequence[Factor], axes: str
  ) -> loops.Summands | None:
    """Returns the factors of the state of a running sum; None: it has none."""
    t, s = axes
    multiples = loops.row_ratios(Factor(product.weight, product.letters), axes)
    factors = [*product.factors, *others]
    if multiples is None or any(
      t in f.letters and s in f.letters for f in factors
    ):
      return None
    ratio, diagonal = multiples
    ratios = [ratio] if np.any(ratio.array != 1) else []
    columns = [diagonal] if np.any(diagonal.array != 1) else []
    columns += [f for f in factors if s in f.letters]
    rows = [f for f in factors if s not in f.letters]
    if product.score is not None:
      row = tables.factor(product.score.row, product.score.letters)
      peak = self.peak(product.score, tables.visible_bias(product), axes)
      if peak is None or s in row.letters:
        return None
      ratios.append(peak.ratio)
      columns.append(peak.weight)
      rows.append(loops.above(peak.high, row, t))
    return loops.Summands(ratios, columns, rows) if columns else None

  def maximum(
    self, score: MaskedScore, axes: Sequence[int], shape: Shape
  ) -> tuple[Factor, str] | None:
    """Returns the running maximum of a masked score, or None."""
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
    self, score: MaskedScore, bias: Array | None, axes: str
  ) -> loops.Peak | None:
    """Returns the running maximum of a score; sums share one computation."""
    if bias is None:
      return None
    t, s = axes
    key = id(score.column), bias.tobytes(), score.letters, axes
    if key not in self.peaks:
      column = tables.factor(score.column, score.letters)
      steps = loops.row_differences(Factor(bias, score.letters), axes)
      if steps is None or t in column.letters or s not in column.letters:
        return None
      difference, diagonal = steps
      peak = loops.run_maximum(column, difference, diagonal, axes)
      self.peaks[key] = score.column, peak
    return self.peaks[key][1]

  def thin(self, eqn: Any, ins: list[TrackedArray], shape: Shape) -> Any:
    """Returns the result computed once for equal positions, or None."""
    name = eqn.primitive.name
    params = eqn.params
    if name in ('name', 'copy', 'stop_gradient'):
      return ins[0].thin
    parts = [tables.thinnest(v, self.length) for v in ins]
    if name == 'dot_general':
      parts = _full_where_summed(params, parts, [v.shape for v in ins])
      thin = any(
        _is_thin(np.shape(p), v.shape, self.length)
        for p, v in zip(parts, ins, strict=True)
      )
    elif name == 'broadcast_in_dim':
      sizes = np.shape(parts[0])
      dims = params['broadcast_dimensions']
      small = tables.spread(sizes, dims, len(shape))
      thin = _is_thin(small, shape, self.length)
      params = params | {'shape': small}
    elif name in folding.POINTWISE:
      small = np.broadcast_shapes(*map(np.shape, parts))
      thin = _is_thin(small, shape, self.length)
      parts = [p if np.ndim(p) == 0 else _widened(p, small) for p in parts]
    else:
      thin = name in ('transpose', 'squeeze', *_REDUCTIONS)
      thin &= ins[0].thin is not None
      reduced = params.get('axes', ()) if name in _REDUCTIONS else ()
      thin &= all(np.shape(parts[0])[a] == ins[0].shape[a] for a in reduced)
    if not thin:
      return None
    return primitives.bind(eqn.primitive, params, _arrays(parts))[0]


def _is_thin(small: Shape, shape: Shape, length: int) -> bool:
  """Returns whether an axis of positions has size 1."""
  return (1, length) in zip(small, shape, strict=False)


def _full_where_summed(
  params: Any, parts: Sequence[Any], shapes: Sequence[Shape]
) -> list[Any]:
  """Returns operands of a product that are thin along free axes only."""
  out = []
  for side, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
    paired = [a for axes in params['dimension_numbers'] for a in axes[side]]
    size = tuple(
      m if a in paired else n
      for a, (n, m) in enumerate(zip(np.shape(part), shape, strict=True))
    )
    out.append(_widened(part, size))
  return out


def _widened(part: Any, shape: Shape) -> Any:
  return part if np.shape(part) == shape else jnp.broadcast_to(part, shape)


def _arrays(parts: Sequence[Any]) -> list[Any]:
  return [p if isinstance(p, jax.Array) else jnp.asarray(p) for p in parts]


def _sizes(letters: str, shape: Shape) -> dict[str, int]:
  return dict(zip(letters, shape, strict=True))


def _without(letters: str, axes: Sequence[int]) -> str:
  return ''.join(c for i, c in enumerate(letters) if i not in axes)
