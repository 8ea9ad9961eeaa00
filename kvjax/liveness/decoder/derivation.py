"""Runs the cache that an analysis found: a decoder from an uncached program.

The program is traced at the capacity and interpreted at one position: what the
cut keeps is stored by `streams`, everything else is computed for the new row
by `rows` and forgotten.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.extend import core

from kvjax.liveness import analysis
from kvjax.liveness.decoder import one_row, storage
from kvjax.liveness.decoder.one_row import Value
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import control_flow
from kvjax.liveness.recurrence import rewrite

Place = tuple[Any, ...]
Init = Callable[[int], 'DerivedCache']
Extend = Callable[['DerivedCache', jax.Array], tuple[jax.Array, 'DerivedCache']]
LENGTHS = (13, 17)  # The equations must be the same at both.


@struct.dataclass
class DerivedCache:
  """What a derived decoder remembers."""

  streams: dict[str, jax.Array]  # [slots, width] a kept tensor, or a state
  length: jax.Array  # int32 [], tokens seen
  capacity: int = struct.field(pytree_node=False)


def derive(
  program: Callable[..., Any], x: Any, axis: int = 0
) -> tuple[Init, Extend]:
  """Returns functions that decode `program` with the cache it needs.

  `init(capacity)` gives an empty `DerivedCache`; `extend(cache, x)` takes the
  next rows of the input, any number of them along `axis`, and gives the rows
  of the output at their places and the new cache. Where an output row waits
  for r later tokens, row t - r comes with token t. Beyond the capacity rows
  are NaN and nothing is written.

  Args:
    program: a function of one array to one array, for any length.
    x: an input, as for `analyze`.
    axis: the axis of `x` that counts positions.

  Raises:
    AnalysisError: there is no exact cache, or none that rows and states hold.
  """
  program, _ = rewrite.recurrent(program, x, axis)
  verdict, stable = analysis.settle(program, x, axis)
  if not stable or np.isinf(verdict.delay):
    raise AnalysisError('old rows change with new tokens: no exact cache.')
  _same_equations(program, x, axis)
  decoder = _Decoder(program, np.asarray(x), axis, verdict)

  def init(capacity: int) -> DerivedCache:
    row = jnp.asarray(np.take(decoder.x, [0], axis))
    step = lambda r: decoder.step(None, r, capacity)[1]
    held = jax.eval_shape(step, row).streams
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in held.items()}
    return DerivedCache(zeros, jnp.zeros((), jnp.int32), capacity)

  def extend(
    cache: DerivedCache, x: jax.Array
  ) -> tuple[jax.Array, DerivedCache]:
    def one(c: DerivedCache, row: jax.Array) -> tuple[DerivedCache, jax.Array]:
      y, c = decoder.step(c, jnp.expand_dims(row, axis), cache.capacity)
      return c, jnp.squeeze(y, decoder.out_axis)

    cache, y = jax.lax.scan(one, cache, jnp.moveaxis(x, axis, 0))
    return jnp.moveaxis(y, 0, decoder.out_axis), cache

  return init, extend


def _same_equations(program: Callable[..., Any], x: Any, axis: int) -> None:
  shapes = [_skeleton(_traced(program, x, axis, n).jaxpr) for n in LENGTHS]
  if shapes[0] != shapes[1]:
    raise AnalysisError(
      'the equations of the program change with its length; write loops over '
      'positions as lax.scan.'
    )


def _skeleton(jaxpr: Any) -> list[Any]:
  return [
    (e.primitive.name, [_skeleton(j) for j in core.jaxprs_in_params(e.params)])
    for e in jaxpr.eqns
  ]


def _traced(program: Callable[..., Any], x: Any, axis: int, length: int) -> Any:
  shape = list(np.shape(x))
  shape[axis] = length
  dtype = jnp.asarray(x).dtype
  return jax.make_jaxpr(program)(jax.ShapeDtypeStruct(shape, dtype))


class _Decoder:
  """The program, what it keeps, and one step of it."""

  def __init__(
    self,
    program: Callable[..., Any],
    x: np.ndarray,
    axis: int,
    verdict: analysis.Verdict,
  ) -> None:
    self.program, self.x, self.axis = program, x, axis
    self.delay = verdict.usual
    self.plan = storage.plan(verdict)
    self.sums = storage.sums(verdict)
    self.states = storage.states(verdict)
    self.admissible = storage.admissible(verdict)
    out = verdict.trace.outputs
    axes = [i for i, n in enumerate(out[0].shape) if n == verdict.trace.length]
    if len(out) != 1 or not axes:
      raise AnalysisError(
        'derive needs a program of one output with an axis of positions.'
      )
    self.out_axis = axis if axis in axes else axes[0]

  def step(
    self, cache: DerivedCache | None, row: jax.Array, capacity: int
  ) -> tuple[jax.Array, DerivedCache]:
    """One position: [1, ...] in, [1, ...] out."""
    closed = _traced(self.program, self.x, self.axis, capacity)
    t = jnp.zeros((), jnp.int32) if cache is None else cache.length
    room = t < capacity
    at = jnp.minimum(t, capacity - 1)
    run = _Run(self, {} if cache is None else cache.streams, at, room, capacity)
    shape = closed.jaxpr.invars[0].aval.shape
    given = Value(shape, None, row, self.axis)
    if jnp.issubdtype(row.dtype, jnp.integer):
      # Ids of the past are forgotten, but not that they were ids.
      given = given._replace(full=one_row.whole(given, at))
    first = run.keep((), [given])[0]
    consts = [Value(np.shape(c), jnp.asarray(c)) for c in closed.consts]
    (out,) = run.program(closed.jaxpr, consts, [first], ())
    run.check()
    y = self._output(out, at)
    if jnp.issubdtype(y.dtype, jnp.inexact):
      y = jnp.where(room, y, jnp.nan)
    length = t + room.astype(jnp.int32)
    return y, DerivedCache(run.new, length, capacity)

  def _output(self, out: Value, t: jax.Array) -> jax.Array:
    if self.delay:
      full = one_row.whole(out, t)
      return jax.lax.dynamic_slice_in_dim(
        full, jnp.maximum(t - self.delay, 0), 1, self.out_axis
      )
    part = one_row.slice_of(out, self.out_axis, 1, t)
    if part is None:
      part = one_row.slice_of(
        Value(out.shape, one_row.whole(out, t)), self.out_axis, 1, t
      )
    if part is None:
      raise AnalysisError('the output has no row of its own.')
    return part


class _Run:
  """Interprets a jaxpr at one position; collects what is to be stored."""

  def __init__(
    self,
    decoder: _Decoder,
    old: dict[str, jax.Array],
    t: jax.Array,
    room: jax.Array,
    capacity: int,
  ) -> None:
    self.decoder, self.old = decoder, old
    self.t, self.room, self.capacity = t, room, capacity
    self.new: dict[str, jax.Array] = {}
    self.stored: list[Place] = []  # of sums and loops over positions

  def program(
    self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value], at: Place
  ) -> list[Value]:
    env: dict[Any, Value] = {}

    def read(v: Any) -> Value:
      if isinstance(v, core.Literal):
        return Value(np.shape(v.val), jnp.asarray(v.val))
      return env[v]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for i, eqn in enumerate(jaxpr.eqns):
      place = (*at, i)
      outs = self.equation(eqn, [read(v) for v in eqn.invars], place)
      outs = self.keep(place, outs)
      env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def keep(self, place: Place, outs: list[Value]) -> list[Value]:
    """Stores the new rows of what is kept here, and reads back the old."""
    past: dict[int, jax.Array] = {}
    planned = self.decoder.plan.get(place, ())
    for stream in planned:
      value = outs[stream.result]
      row = stream.row(value, self.t)
      shape = stream.slots(self.capacity), row.size
      slots = self.old.get(stream.name, jnp.zeros(shape, row.dtype))
      self.new[stream.name] = stream.write(slots, value, self.t, self.room)
      rows_before = stream.past(slots, value, self.t, self.capacity)
      past[stream.result] = past.get(stream.result, 0) + rows_before
    for stream in planned:
      i = stream.result
      outs[i] = stream.whole(past[i], outs[i], self.t, self.capacity)
    return outs

  def equation(self, eqn: Any, ins: list[Value], place: Place) -> list[Value]:
    name, params = eqn.primitive.name, eqn.params
    if name == 'scan' and any(v.row is not None for v in ins):
      return self.scan(params, ins, place)
    if name in control_flow.CALLS:
      body, consts = control_flow.body_of(params)
      args = ins[len(ins) - len(body.invars) :]
      return self.program(body, _values(consts), args, place)
    kept_sum = name in control_flow.CUMULATIVE and place in self.decoder.sums
    if kept_sum and self.runs_on(params, ins[0]):
      return [self.cumulative(eqn, ins[0], place)]
    admitted = self.decoder.admissible.get(place)
    admits = lambda axis: admitted is None or axis in admitted
    found = one_row.row(eqn.primitive, params, ins, self.t, admits)
    fulls = [v.full for v in ins]
    shapes = [v.aval.shape for v in eqn.outvars]
    if found is None or all(f is not None for f in fulls):
      known = [one_row.whole(v, self.t) for v in ins]
      made: Sequence[Any] = one_row.bind(eqn.primitive, params, known)
    else:
      made = [None] * len(shapes)
    new, axis = found if found is not None else ([None] * len(shapes), 0)
    return [
      Value(s, f, r, axis) for s, f, r in zip(shapes, made, new, strict=True)
    ]

  def runs_on(self, params: Any, operand: Value) -> bool:
    return (
      operand.row is not None
      and operand.axis == params['axis']
      and not params['reverse']
    )

  def state(self, place: Place, first: jax.Array) -> jax.Array:
    """A loop's state before this position: `first` before any."""
    name = f'state{place}'
    held = self.old.get(name, jnp.zeros_like(first))
    return jnp.where(self.t == 0, first, held)

  def store(self, place: Place, before: jax.Array, after: jax.Array) -> None:
    self.new[f'state{place}'] = jnp.where(self.room, after, before)
    self.stored.append(place)

  def check(self) -> None:
    """Raises where a kept state was computed anew instead of carried on."""
    for name, place in self.decoder.states.items():
      loops = [p[:-1] for p in self.stored]  # without the number of the carry
      held = any(place[: len(p)] == p for p in loops)
      if not held and place not in self.stored:
        raise AnalysisError(
          f'{name} is kept, but no loop over new rows makes it: what it sums '
          'has no row of its own. Write it without reversals and gathers.'
        )

  def cumulative(self, eqn: Any, operand: Value, place: Place) -> Value:
    """The sum so far and the new row; nothing of the rows before."""
    if operand.row is None or operand.row.shape[operand.axis] != 1:
      raise AnalysisError(f'a running sum over part of a row: {eqn}')
    before = self.state(place, operand.row)
    pair = jnp.concatenate([before, operand.row], operand.axis)
    (both,) = one_row.bind(eqn.primitive, eqn.params, [pair])
    after = jax.lax.slice_in_dim(both, 1, 2, axis=operand.axis)
    after = jnp.where(self.t == 0, operand.row, after)
    self.store(place, before, after)
    return Value(operand.shape, None, after, operand.axis)

  def scan(self, params: Any, ins: list[Value], place: Place) -> list[Value]:
    body, consts = control_flow.open_jaxpr(params['jaxpr'])
    a, carried = control_flow.scan_counts(params)
    b = a + carried
    run = lambda args, at: self.program(body, _values(consts), args, at)
    over_time = params['length'] == self.capacity and any(
      v.row is not None and v.axis == 0 for v in ins[b:]
    )
    if over_time and not params['reverse']:
      return self.over_positions(run, ins[:a], ins[a:b], ins[b:], place)
    carry, ys = ins[a:b], {}
    steps = range(params['length'])
    for i in reversed(steps) if params['reverse'] else steps:
      columns = [_column(v, i, self.t) for v in ins[b:]]
      out = run([*ins[:a], *carry, *columns], (*place, ('step', i)))
      carry, ys[i] = out[: b - a], out[b - a :]
    count = len(ys[0]) if ys else 0
    return [
      *carry,
      *(self.stacked([ys[i][j] for i in steps]) for j in range(count)),
    ]

  def over_positions(
    self,
    run: Callable[..., list[Value]],
    shared: list[Value],
    carry: list[Value],
    columns: list[Value],
    place: Place,
  ) -> list[Value]:
    """A scan over positions takes one step; its carry is the state."""
    before = [
      self.state((*place, i), one_row.whole(v, self.t))
      for i, v in enumerate(carry)
    ]
    old = [Value(b.shape, b) for b in before]
    now = []
    for v in columns:
      part = one_row.slice_of(v, 0, 1, self.t)
      if part is None:
        raise AnalysisError(f'a loop over positions reads {v.shape} whole.')
      now.append(Value(part.shape[1:], part[0]))
    out = run([*shared, *old, *now], (*place, ('step', 0)))
    for i, (b, v) in enumerate(zip(before, out, strict=False)):
      self.store((*place, i), b, one_row.whole(v, self.t))
    ys = [one_row.whole(v, self.t) for v in out[len(carry) :]]
    after = out[: len(carry)]
    return [
      *after,
      *(Value((self.capacity, *y.shape), None, y[None], 0) for y in ys),
    ]

  def stacked(self, parts: list[Value]) -> Value:
    shape = (len(parts), *parts[0].shape)
    axes = {v.axis for v in parts if v.row is not None}
    new = full = None
    if len(axes) == 1 and all(v.row is not None for v in parts):
      new = jnp.stack([v.row for v in parts if v.row is not None])
    if new is None or all(v.full is not None for v in parts):
      full = jnp.stack([one_row.whole(v, self.t) for v in parts])
    return Value(shape, full, new, min(axes, default=0) + 1)


def _values(consts: Sequence[Any]) -> list[Value]:
  return [Value(c.shape, jnp.asarray(c.const)) for c in consts]


def _column(value: Value, i: int, t: jax.Array) -> Value:
  """Entry i along the first axis."""
  if value.row is not None and value.axis == 0:
    return Value(value.shape[1:], one_row.whole(value, t)[i])
  full = None if value.full is None else value.full[i]
  new = None if value.row is None else value.row[i]
  return Value(value.shape[1:], full, new, max(value.axis - 1, 0))
