"""A program as a straight line of operations on scalars.

Calls are inlined, loops unrolled, branches by data joined, sums along an axis
written as their recurrence, convolutions as windows and a product. What is
left are operations that make new scalars, in order.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import (
  control_flow,
  evaluate,
  folding,
  lowering,
  movement,
  relations,
  rules,
  scalars,
)
from kvjax.liveness.program import jaxpr as opening

Array = np.ndarray
Tensor = scalars.Tensor
Key = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an operation comes from: its place in the jaxpr and in the source.

  Places are equation numbers, inner calls after outer; a pair stands for an
  iteration of a loop.
  """

  place: Key
  source: str
  text: str

  @property
  def equation(self) -> Key:
    """The place, whichever iteration."""
    return tuple(p for p in self.place if isinstance(p, int))


@dataclasses.dataclass(frozen=True)
class Op:
  """One equation; `outs` hold identities where a scalar is new, else CONST."""

  primitive: Any
  params: dict[str, Any]
  ins: tuple[Tensor, ...]
  reads: tuple[relations.Relation, ...]
  outs: tuple[Array, ...]
  dtypes: tuple[Any, ...]
  flops: float
  origin: Origin

  @property
  def name(self) -> str:
    return self.primitive.name


@dataclasses.dataclass(frozen=True)
class Trace:
  """Everything a program computes on one sequence of `length` positions."""

  length: int
  axis: int
  ops: tuple[Op, ...]
  table: scalars.Table
  x: Tensor
  outputs: tuple[Tensor, ...]
  names: dict[str, tuple[Tensor, ...]]  # every tensor a name was given to
  results: dict[Key, tuple[Tensor, ...]]  # of the equation at every place


def trace(program: Callable[..., Any], x: Any, axis: int = 0) -> Trace:
  """Traces `program` at the length that `x` has."""
  closed = opening.jaxpr_of(program, x)
  recorder = Recorder()
  length = x.shape[axis]
  lead = [1] * len(x.shape)
  lead[axis] = length
  positions = np.broadcast_to(np.arange(length).reshape(lead), x.shape)
  ids = recorder.table.add(positions.reshape(-1), -1, x.dtype.itemsize)
  source = scalars.data(ids.reshape(x.shape), x.dtype)
  if np.issubdtype(x.dtype, np.integer) and np.min(x) >= 0:
    recorder.natural = x.size
  consts = [scalars.constant(_generic(c)) for c in closed.consts]
  outs = recorder.run(closed.jaxpr, consts, [source], ())
  return Trace(
    length,
    axis,
    tuple(recorder.ops),
    recorder.table,
    source,
    tuple(outs),
    {k: tuple(v) for k, v in recorder.names.items()},
    recorder.results,
  )


def _generic(const: Any) -> Any:
  """A weight that is zero everywhere is untrained, not absent."""
  if not jax.numpy.issubdtype(const.dtype, np.floating) or const.size < 2:
    return const
  value = np.asarray(const)
  if np.any(value):
    return const
  return np.random.default_rng(0).normal(size=value.shape).astype(value.dtype)


class Recorder:
  """Interprets a jaxpr on tensors of identities and records what it makes."""

  def __init__(self) -> None:
    self.table = scalars.Table()
    self.ops: list[Op] = []
    self.natural = 0  # Scalars below this number are ids, never negative.
    self.names: dict[str, list[Tensor]] = {}
    self.results: dict[Key, tuple[Tensor, ...]] = {}

  def run(
    self,
    jaxpr: Any,
    consts: Sequence[Tensor],
    args: Sequence[Tensor],
    place: Key,
  ) -> list[Tensor]:
    env: dict[Any, Tensor] = {}

    def read(v: Any) -> Tensor:
      return (
        scalars.constant(np.asarray(v.val))
        if isinstance(v, core.Literal)
        else env[v]
      )

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for i, eqn in enumerate(jaxpr.eqns):
      outs = self._equation(eqn, [read(v) for v in eqn.invars], (*place, i))
      env.update(zip(eqn.outvars, outs, strict=True))
      self.results[*place, i] = tuple(outs)
    return [read(v) for v in jaxpr.outvars]

  def _equation(self, eqn: Any, ins: list[Tensor], place: Key) -> list[Tensor]:
    origin = Origin(place, opening.source(eqn), str(eqn)[:200])
    name = eqn.primitive.name
    if name == 'name':
      self.names.setdefault(eqn.params['name'], []).append(ins[0])
    if name in control_flow.NESTED and not all(t.fixed for t in ins):
      return control_flow.run(self, eqn, ins, origin)
    avals = [v.aval for v in eqn.outvars]
    return self.apply(eqn.primitive, eqn.params, ins, avals, origin)

  def apply(
    self,
    primitive: Any,
    params: dict[str, Any],
    ins: Sequence[Tensor],
    avals: Sequence[Any],
    origin: Origin,
  ) -> list[Tensor]:
    """One primitive: evaluated, moved, folded, lowered or recorded."""
    moved = movement.move(primitive, params, ins)
    if moved is not None:
      return [moved]
    if all(t.fixed for t in ins):
      with np.errstate(all='ignore'):
        values = evaluate.evaluate(primitive, params, [t.const for t in ins])
      return [scalars.constant(v) for v in values]
    lowered = lowering.lower(self, primitive, params, ins, avals, origin)
    if lowered is not None:
      return lowered
    if primitive.name in folding.POINTWISE:
      return [self._pointwise(primitive, params, ins, avals[0], origin)]
    return self.mixed(primitive, params, ins, avals, origin)

  def mixed(
    self,
    primitive: Any,
    params: dict[str, Any],
    ins: Sequence[Tensor],
    avals: Sequence[Any],
    origin: Origin,
  ) -> list[Tensor]:
    """A primitive whose relation a rule knows."""
    related = rules.relate(primitive.name, params, ins, avals[0].shape)
    if related is None:
      raise AnalysisError(
        f'no rule says which positions {primitive.name!r} mixes: '
        f'{origin.text} at {origin.source}. Write it in other primitives.'
      )
    reads, flops = related
    return self._record(primitive, params, ins, reads, flops, avals, origin)

  def _pointwise(
    self,
    primitive: Any,
    params: dict[str, Any],
    ins: Sequence[Tensor],
    aval: Any,
    origin: Origin,
  ) -> Tensor:
    ins = [
      t.moved(lambda a: np.broadcast_to(a, aval.shape))
      if t.shape != aval.shape
      else t
      for t in ins
    ]
    folded, rest = folding.fold(
      primitive.name, ins, aval.shape, aval.dtype, self.natural
    )
    rest = self._regular(primitive.name, ins, rest)
    if not rest.any():
      return folded
    reads = [relations.Pointwise()] * len(ins)
    (made,) = self._record(
      primitive, params, ins, reads, 1.0, [aval], origin, rest
    )
    return Tensor(
      np.where(rest, made.ids, folded.ids),
      np.where(rest, made.const, folded.const),
      folded.offset,
    )

  def _regular(self, name: str, ins: Sequence[Tensor], rest: Array) -> Array:
    """Keeps a fold only where it parts scalars of one position, as masks do.

    That sin(0) is 0 makes no tensor of its own out of the first row of a
    rotated key.
    """
    if name not in folding.ARITHMETIC or rest.all() or not rest.any():
      return rest
    ready = np.max(
      [scalars.lookup(self.table.available, t.ids) for t in ins], axis=0
    )
    times = ready[ready >= 0]
    settled = np.isin(np.unique(times), ready[(ready >= 0) & ~rest])
    left = np.isin(np.unique(times), ready[(ready >= 0) & rest])
    return rest if np.any(settled & left) else rest | (ready >= 0)

  def _record(
    self,
    primitive: Any,
    params: dict[str, Any],
    ins: Sequence[Tensor],
    reads: Sequence[relations.Relation],
    flops: float,
    avals: Sequence[Any],
    origin: Origin,
    rest: Array | None = None,
  ) -> list[Tensor]:
    """Numbers the scalars that read data; evaluates the ones that do not."""
    known = self.table.available
    ready = np.max(
      [
        relation.push(scalars.lookup(known, t.ids))
        for t, relation in zip(ins, reads, strict=True)
        if not t.fixed
      ],
      axis=0,
    )
    fresh = (ready >= 0) if rest is None else (ready >= 0) & rest
    outs = [np.full(ready.shape, scalars.CONST, np.int64) for _ in avals]
    for ids, aval in zip(outs, avals, strict=True):
      itemsize = np.dtype(aval.dtype).itemsize
      ids[fresh] = self.table.add(ready[fresh], len(self.ops), itemsize)
    if fresh.any():
      dtypes = tuple(a.dtype for a in avals)
      self.ops.append(
        Op(
          primitive,
          params,
          tuple(ins),
          tuple(reads),
          tuple(outs),
          dtypes,
          flops,
          origin,
        )
      )
    constant = ~fresh if rest is None else ~fresh & rest
    values: Sequence[Any] = [np.zeros(a.shape, a.dtype) for a in avals]
    if constant.any():
      with np.errstate(all='ignore'):
        values = evaluate.evaluate(primitive, params, [t.const for t in ins])
    return [
      Tensor(ids, np.asarray(v)) for ids, v in zip(outs, values, strict=True)
    ]
