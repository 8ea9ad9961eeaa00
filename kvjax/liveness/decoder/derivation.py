"""Decodes an uncached program with the cache that its analysis asks for.

The program is traced at the capacity and interpreted at one position. What the
cut keeps is stored by `storage`; everything else is computed by `one_row` for
the new row and forgotten.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.extend import core

from kvjax.liveness.analysis import settle
from kvjax.liveness.decoder import one_row, storage
from kvjax.liveness.decoder.one_row import RowValue
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import jaxprs, rules
from kvjax.liveness.program.primitives import bind
from kvjax.liveness.program.trace import Place
from kvjax.liveness.recurrence import rewrite
from kvjax.liveness.verdict import Analysis

Program = Callable[..., Any]
Init = Callable[[int], 'DerivedCache']
Extend = Callable[['DerivedCache', jax.Array], tuple[jax.Array, 'DerivedCache']]
Rows = Sequence[RowValue]
Step = Callable[..., list[RowValue]]
LENGTHS = (13, 17)  # The equations must be the same at both.


@struct.dataclass
class DerivedCache:
  """What a derived decoder remembers.

  Attributes:
    streams: by name, a kept tensor `[slots, width]` or a state.
    length: int32 `[]`, tokens seen.
    capacity: most tokens.
  """

  streams: dict[str, jax.Array]
  length: jax.Array
  capacity: int = struct.field(pytree_node=False)


def derive(program: Program, x: Any, axis: int = 0) -> tuple[Init, Extend]:
  """Returns functions that decode `program` with the cache it needs.

  `init(capacity)` returns an empty `DerivedCache`. `extend(cache, x)` takes the
  next rows of the input, any number of them along `axis`, and returns the rows
  of the output at these positions and the new cache. Where an output row waits
  for r later tokens, row t - r comes with token t. Beyond the capacity rows
  are NaN and nothing is written.

  Args:
    program: a function of one array to one array, for any length.
    x: an input, as for `analyze`.
    axis: the axis of `x` that counts positions.

  Raises:
    AnalysisError: no cache is exact, or none of rows and states is.
  """
  program, _ = rewrite.replace_sums(program, x, axis)
  analysis, stable = settle(program, x, axis)
  if not stable or np.isinf(analysis.delay):
    raise AnalysisError('old rows change with new tokens: no exact cache.')
  _same_equations(program, x, axis)
  decoder = _Decoder(program, np.asarray(x), axis, analysis)

  def init(capacity: int) -> DerivedCache:
    row = jnp.asarray(np.take(decoder.x, [0], axis))
    step = lambda r: decoder.step(None, r, capacity)[1]
    # A step says what it would store; the cache has these arrays, of zeros.
    shapes = jax.eval_shape(step, row).streams
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()}
    return DerivedCache(zeros, jnp.zeros((), jnp.int32), capacity)

  def extend(
    cache: DerivedCache, x: jax.Array
  ) -> tuple[jax.Array, DerivedCache]:
    def step(c: DerivedCache, row: jax.Array) -> tuple[DerivedCache, jax.Array]:
      y, c = decoder.step(c, jnp.expand_dims(row, axis), cache.capacity)
      return c, jnp.squeeze(y, decoder.out_axis)

    cache, y = jax.lax.scan(step, cache, jnp.moveaxis(x, axis, 0))
    return jnp.moveaxis(y, 0, decoder.out_axis), cache

  return init, extend


def _same_equations(program: Program, x: Any, axis: int) -> None:
  shapes = [_skeleton(_traced(program, x, axis, n).jaxpr) for n in LENGTHS]
  if shapes[0] != shapes[1]:
    raise AnalysisError(
      'the equations of the program change with its length; write loops over '
      'positions as lax.scan.'
    )


def _skeleton(jaxpr: Any) -> list[Any]:
  """Returns the names of a jaxpr's primitives, with those of inner jaxprs."""
  return [
    (e.primitive.name, [_skeleton(j) for j in core.jaxprs_in_params(e.params)])
    for e in jaxpr.eqns
  ]


def _traced(program: Program, x: Any, axis: int, length: int) -> Any:
  shape = list(np.shape(x))
  shape[axis] = length
  dtype = jnp.asarray(x).dtype
  return jax.make_jaxpr(program)(jax.ShapeDtypeStruct(shape, dtype))


class _Decoder:
  """The program, what it keeps, and one step of it."""

  def __init__(
    self, program: Program, x: np.ndarray, axis: int, analysis: Analysis
  ) -> None:
    self.program = program
    self.x = x
    self.axis = axis
    self.delay = analysis.usual_delay
    self.kept = storage.plan_kept(analysis)
    self.sums = storage.kept_places(analysis)
    self.states = storage.kept_states(analysis)
    self.row_axes = storage.find_row_axes(analysis)
    outputs = analysis.trace.outputs
    out_axis = perturb.row_axis(analysis.trace, outputs[0])
    if len(outputs) != 1 or out_axis is None:
      raise AnalysisError(
        'derive needs a program of one output with an axis of positions.'
      )
    self.out_axis = out_axis

  def step(
    self, cache: DerivedCache | None, row: jax.Array, capacity: int
  ) -> tuple[jax.Array, DerivedCache]:
    """Runs one position: [1, ...] in, [1, ...] out.

    Without a cache the step starts from one of zeros.
    """
    closed = _traced(self.program, self.x, self.axis, capacity)
    length = jnp.zeros((), jnp.int32) if cache is None else cache.length
    room = length < capacity
    # Without room the step runs at the last position, so that every slice is
    # in bounds, and stores nothing.
    t = jnp.minimum(length, capacity - 1)
    old = {} if cache is None else cache.streams
    run = _Run(self, old, t, room, capacity)
    x = RowValue(closed.jaxpr.invars[0].aval.shape, None, row, self.axis)
    if jnp.issubdtype(row.dtype, jnp.integer):
      # A lookup needs valid ids for the whole of a table's rows. Past ids are
      # forgotten; 0 stands for them.
      x = x._replace(full=one_row.whole(x, t))
    (x,) = run.keep((), [x])
    (out,) = run.program(closed.jaxpr, closed.consts, [x], ())
    run.check()
    y = self._output(out, t)
    if jnp.issubdtype(y.dtype, jnp.inexact):
      y = jnp.where(room, y, jnp.nan)
    length = length + room.astype(jnp.int32)
    return y, DerivedCache(run.new, length, capacity)

  def _output(self, out: RowValue, t: jax.Array) -> jax.Array:
    """Returns the row of the output that is final at position t."""
    row = one_row.slice_of(out, self.out_axis, 1, t)
    if row is not None and not self.delay:
      return row
    full = one_row.whole(out, t)
    start = jnp.maximum(t - self.delay, 0)
    return jax.lax.dynamic_slice_in_dim(full, start, 1, self.out_axis)


@dataclasses.dataclass(frozen=True)
class _Run:
  """Interprets a jaxpr at one position; collects what is to be stored."""

  decoder: _Decoder
  old: dict[str, jax.Array]
  t: jax.Array
  room: jax.Array  # bool [], whether anything is written
  capacity: int
  new: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  # Places of sums and loops over positions.
  stored: list[Place] = dataclasses.field(default_factory=list)

  def program(
    self, jaxpr: Any, consts: Sequence[Any], args: Rows, place: Place
  ) -> list[RowValue]:
    """Returns the results of a jaxpr; stores what it keeps."""

    def run_equation(i: int, eqn: Any, ins: list[RowValue]) -> list[RowValue]:
      inner = (*place, i)
      return self.keep(inner, self.equation(eqn, ins, inner))

    return jaxprs.interpret(jaxpr, consts, args, run_equation, _constant)

  def keep(self, place: Place, outs: list[RowValue]) -> list[RowValue]:
    """Stores the new rows of what is kept here, and reads back the old."""
    past: dict[int, jax.Array] = {}
    kept = self.decoder.kept.get(place, ())
    for tensor in kept:
      value = outs[tensor.result]
      row = tensor.row(value, self.t)
      shape = tensor.slots(self.capacity), row.size
      slots = self.old.get(tensor.name, jnp.zeros(shape, row.dtype))
      self.new[tensor.name] = storage.write(slots, row, self.t, self.room)
      rows_before = tensor.past(slots, value, self.t, self.capacity)
      # Two kept parts of one result have different features, 0 elsewhere.
      past[tensor.result] = past.get(tensor.result, 0) + rows_before
    for tensor in kept:
      i = tensor.result
      outs[i] = tensor.whole(past[i], outs[i], self.t, self.capacity)
    return outs

  def equation(
    self, eqn: Any, ins: list[RowValue], place: Place
  ) -> list[RowValue]:
    name = eqn.primitive.name
    params = eqn.params
    if name == 'scan' and any(v.row is not None for v in ins):
      return self.scan(params, ins, place)
    if name in jaxprs.CALLS:
      body, consts = jaxprs.open_call(params)
      args = ins[len(ins) - len(body.invars) :]
      return self.program(body, consts, args, place)
    if name in rules.CUMULATIVE and place in self.decoder.sums:
      over_rows = ins[0].row is not None and ins[0].axis == params['axis']
      if over_rows and not params['reverse']:
        return [self.cumulative(eqn, ins[0], place)]
    axes = self.decoder.row_axes.get(place)
    admits = lambda axis: axes is None or axis in axes
    rows = one_row.new_rows(eqn, ins, self.t, admits)
    shapes = [v.aval.shape for v in eqn.outvars]
    fulls: Sequence[Any] = [None] * len(shapes)
    # Where all operands are whole the result is made whole as well: a reader
    # may have no rule for a row.
    if rows is None or all(v.full is not None for v in ins):
      operands = [one_row.whole(v, self.t) for v in ins]
      fulls = bind(eqn.primitive, params, operands)
    new, axis = rows if rows is not None else ([None] * len(shapes), 0)
    return [
      RowValue(shape, full, row, axis)
      for shape, full, row in zip(shapes, fulls, new, strict=True)
    ]

  def state(self, place: Place, first: jax.Array) -> jax.Array:
    """Returns a loop's state before this position: `first` before any."""
    before = self.old.get(f'state{place}', jnp.zeros_like(first))
    return jnp.where(self.t == 0, first, before)

  def store(self, place: Place, before: jax.Array, after: jax.Array) -> None:
    self.new[f'state{place}'] = jnp.where(self.room, after, before)
    self.stored.append(place)

  def check(self) -> None:
    """Raises where a kept state was computed anew instead of carried on."""
    for name, place in self.decoder.states.items():
      loops = [p[:-1] for p in self.stored]  # without the number of the carry
      in_loop = any(place[: len(p)] == p for p in loops)
      if not in_loop and place not in self.stored:
        raise AnalysisError(
          f'{name} is kept, but no loop over new rows makes it: what it sums '
          'has no row for every position. Write it without reversals and '
          'gathers.'
        )

  def cumulative(self, eqn: Any, operand: RowValue, place: Place) -> RowValue:
    """Returns the sum so far with the new row; needs no row before it."""
    if operand.row is None or operand.block != 1:
      raise AnalysisError(f'a running sum over part of a row: {eqn}')
    before = self.state(place, operand.row)
    pair = jnp.concatenate([before, operand.row], operand.axis)
    (both,) = bind(eqn.primitive, eqn.params, [pair])
    after = jax.lax.slice_in_dim(both, 1, 2, axis=operand.axis)
    after = jnp.where(self.t == 0, operand.row, after)
    self.store(place, before, after)
    return RowValue(operand.shape, None, after, operand.axis)

  def scan(
    self, params: Any, ins: list[RowValue], place: Place
  ) -> list[RowValue]:
    """Runs a scan: over positions one step of it, else all its steps."""
    body, consts = jaxprs.open_jaxpr(params['jaxpr'])
    shared, carry, columns = jaxprs.split_scan(params, ins)
    run_step = lambda i, carry, row: self.program(
      body, consts, [*shared, *carry, *row], (*place, ('step', i))
    )
    over_positions = params['length'] == self.capacity and any(
      v.row is not None and v.axis == 0 for v in columns
    )
    if over_positions and not params['reverse']:
      return self.scan_positions(run_step, carry, columns, place)
    column = lambda i: [_column(v, i, self.t) for v in columns]
    step = lambda i, carry: run_step(i, carry, column(i))
    return jaxprs.unroll_scan(params, carry, step, self.stack)

  def scan_positions(
    self, run_step: Step, carry: Rows, columns: Rows, place: Place
  ) -> list[RowValue]:
    """Takes one step of a scan over positions; the carry is the state."""
    before = [
      self.state((*place, i), one_row.whole(v, self.t))
      for i, v in enumerate(carry)
    ]
    row = []
    for v in columns:
      part = one_row.slice_of(v, 0, 1, self.t)
      if part is None:
        raise AnalysisError(f'a loop over positions reads {v.shape} whole.')
      row.append(RowValue(part.shape[1:], part[0]))
    out = run_step(0, [RowValue(b.shape, b) for b in before], row)
    after = out[: len(before)]
    for i, (b, v) in enumerate(zip(before, after, strict=True)):
      self.store((*place, i), b, one_row.whole(v, self.t))
    ys = [one_row.whole(v, self.t) for v in out[len(before) :]]
    stacked = [
      RowValue((self.capacity, *y.shape), None, y[None], 0) for y in ys
    ]
    return [*after, *stacked]

  def stack(self, parts: list[RowValue]) -> RowValue:
    """Returns values along a new first axis; as a row if all are rows."""
    rows = [v.row for v in parts if v.row is not None]
    axes = {v.axis for v in parts if v.row is not None}
    new = full = None
    if len(axes) == 1 and len(rows) == len(parts):
      new = jnp.stack(rows)
    if new is None or all(v.full is not None for v in parts):
      full = jnp.stack([one_row.whole(v, self.t) for v in parts])
    shape = (len(parts), *parts[0].shape)
    return RowValue(shape, full, new, min(axes, default=0) + 1)


def _constant(value: Any) -> RowValue:
  return RowValue(np.shape(value), jnp.asarray(value))


def _column(value: RowValue, i: int, t: jax.Array) -> RowValue:
  """Returns entry i along the first axis."""
  shape = value.shape[1:]
  if value.row is not None and value.axis == 0:
    return RowValue(shape, one_row.whole(value, t)[i])
  full = None if value.full is None else value.full[i]
  row = None if value.row is None else value.row[i]
  return RowValue(shape, full, row, max(value.axis - 1, 0))
