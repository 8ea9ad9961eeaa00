"""Traces a program as a straight sequence of operations on scalars.

Calls are inlined, loops unrolled, branches by data joined, sums along an axis
written as their recurrence, convolutions as windows and a product. What is
left are operations that make new scalars, in order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import (
  control_flow,
  folding,
  jaxprs,
  lowering,
  movement,
  primitives,
  relations,
  rules,
  scalars,
)
from kvjax.liveness.program.scalars import Tensor, Tensors
from kvjax.liveness.program.trace import Equation, Op, Origin, Place, Trace

Array = np.ndarray


def trace_program(program: Callable[..., Any], x: Any, axis: int = 0) -> Trace:
  """Returns the trace of `program` at the length that `x` has."""
  closed = jaxprs.jaxpr_of(program, x)
  recorder = Recorder()
  length = x.shape[axis]
  positions = np.indices(x.shape)[axis]
  ids = recorder.table.add(positions.reshape(-1), -1, x.dtype.itemsize)
  source = scalars.data(ids.reshape(x.shape), x.dtype)
  if np.issubdtype(x.dtype, np.integer) and np.min(x) >= 0:
    recorder.natural = x.size
  consts = [_generic(c) for c in closed.consts]
  outs = recorder.run(closed.jaxpr, consts, [source], ())
  return Trace(
    length=length,
    axis=axis,
    ops=tuple(recorder.ops),
    table=recorder.table,
    x=source,
    outputs=tuple(outs),
    names={name: tuple(ts) for name, ts in recorder.names.items()},
    results=recorder.results,
  )


def _generic(const: Any) -> Any:
  """Returns a weight, random where it is zero everywhere.

  Such a weight is untrained. Read as an exact zero it would hide every
  dependence that passes through it.
  """
  if not jax.numpy.issubdtype(const.dtype, np.floating) or const.size < 2:
    return const
  value = np.asarray(const)
  if np.any(value):
    return const
  return np.random.default_rng(0).normal(size=value.shape).astype(value.dtype)


def _constant(value: Any) -> Tensor:
  extended = primitives.is_extended(value)
  return scalars.constant(value if extended else np.asarray(value))


class Recorder:
  """Interprets a jaxpr on tensors of scalar numbers and records operations."""

  def __init__(self) -> None:
    self.table = scalars.Table()
    self.ops: list[Op] = []
    self.natural = 0  # Scalars below this number are ids, never negative.
    self.names: dict[str, list[Tensor]] = {}
    self.results: dict[Place, tuple[Tensor, ...]] = {}

  def run(
    self, jaxpr: Any, consts: Sequence[Any], args: Tensors, place: Place
  ) -> list[Tensor]:
    """Records the equations of a jaxpr; returns its results."""

    def record_equation(i: int, eqn: Any, ins: list[Tensor]) -> list[Tensor]:
      inner = (*place, i)
      outs = self._equation(eqn, ins, inner)
      self.results[inner] = tuple(outs)
      return outs

    return jaxprs.interpret(jaxpr, consts, args, record_equation, _constant)

  def _equation(
    self, eqn: Any, ins: list[Tensor], place: Place
  ) -> list[Tensor]:
    avals = [v.aval for v in eqn.outvars]
    origin = Origin(place, jaxprs.source(eqn), str(eqn)[:200])
    equation = Equation(eqn.primitive, eqn.params, avals, origin)
    if equation.name == 'name':
      self.names.setdefault(eqn.params['name'], []).append(ins[0])
    if equation.name in control_flow.NESTED and not all(t.fixed for t in ins):
      return control_flow.run_nested(self, equation, ins)
    return self.apply(equation, ins)

  def apply(self, equation: Equation, ins: Tensors) -> list[Tensor]:
    """Moves, evaluates, lowers, folds or records one equation."""
    primitive = equation.primitive
    params = equation.params
    moved = movement.move(primitive, params, ins)
    if moved is not None:
      return [moved]
    if all(t.fixed for t in ins):
      values = primitives.evaluate(primitive, params, [t.const for t in ins])
      return [scalars.constant(v) for v in values]
    lowered = lowering.lower(self, equation, ins)
    if lowered is not None:
      return lowered
    if equation.name in folding.POINTWISE:
      return [self._record_pointwise(equation, ins)]
    return self.record_mixed(equation, ins)

  def record_mixed(self, equation: Equation, ins: Tensors) -> list[Tensor]:
    """Records a primitive that has a rule for what it reads.

    Raises:
      AnalysisError: no rule knows the primitive.
    """
    name = equation.name
    origin = equation.origin
    rule = rules.RULES.get(name)
    if rule is None:
      raise AnalysisError(
        f'no rule says which positions {name!r} mixes: '
        f'{origin.text} at {origin.source}. Write it in other primitives.'
      )
    reads, flops = rule(equation.params, ins, equation.avals[0].shape)
    return self._record(equation, ins, reads, flops)

  def _record_pointwise(self, equation: Equation, ins: Tensors) -> Tensor:
    aval = equation.avals[0]
    ins = [
      t.moved(lambda a: np.broadcast_to(a, aval.shape))
      if t.shape != aval.shape
      else t
      for t in ins
    ]
    folded, rest = folding.fold(equation.name, ins, aval, self.natural)
    rest = self._regular(equation.name, ins, rest)
    if not rest.any():
      return folded
    reads = [relations.Pointwise()] * len(ins)
    (new,) = self._record(equation, ins, reads, 1.0, rest)
    return Tensor(
      np.where(rest, new.ids, folded.ids),
      np.where(rest, new.const, folded.const),
      folded.offset,
    )

  def _regular(self, name: str, ins: Tensors, rest: Array) -> Array:
    """Returns the scalars to make, with folds of whole positions undone.

    A mask separates scalars of one position; such a fold stays. That sin(0) is
    0 folds all of position 0 instead, which must not split the first row of a
    rotated key from the other rows.
    """
    if name not in folding.ARITHMETIC or rest.all() or not rest.any():
      return rest
    ready = np.max(
      [scalars.lookup(self.table.available, t.ids) for t in ins], axis=0
    )
    times = np.unique(ready[ready >= 0])
    settled = np.isin(times, ready[(ready >= 0) & ~rest])
    left = np.isin(times, ready[(ready >= 0) & rest])
    return rest if np.any(settled & left) else rest | (ready >= 0)

  def _record(
    self,
    equation: Equation,
    ins: Tensors,
    reads: Sequence[relations.Relation],
    flops: float,
    rest: Array | None = None,
  ) -> list[Tensor]:
    """Numbers the scalars that read data; evaluates the ones that do not.

    Args:
      equation: what is recorded.
      ins: its operands.
      reads: a relation for every operand.
      flops: of one scalar of the result.
      rest: the scalars that folding has left to make; None: all.
    """
    ready = relations.push_reads(ins, reads, self.table.available)
    rest = np.ones(ready.shape, bool) if rest is None else rest
    fresh = (ready >= 0) & rest
    outs = [
      np.full(ready.shape, scalars.CONST, np.int64) for _ in equation.avals
    ]
    for ids, aval in zip(outs, equation.avals, strict=True):
      itemsize = np.dtype(aval.dtype).itemsize
      ids[fresh] = self.table.add(ready[fresh], len(self.ops), itemsize)
    if fresh.any():
      self.ops.append(
        Op(equation, tuple(ins), tuple(reads), tuple(outs), flops)
      )
    values: Sequence[Any] = [np.zeros(a.shape, a.dtype) for a in equation.avals]
    if np.any(~fresh & rest):
      constants = [t.const for t in ins]
      values = primitives.evaluate(
        equation.primitive, equation.params, constants
      )
    return [
      Tensor(ids, np.asarray(v)) for ids, v in zip(outs, values, strict=True)
    ]
