"""From an uncached program to what it must remember.

The program is traced at one length and at a longer one, and both must say the
same. `docs/liveness.md` has the theory.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kvjax.liveness import (
    absorb,
    description,
    masked,
    passes,
    report,
    witness,
)
from kvjax.liveness import cut as cutting
from kvjax.liveness import labels as labelling
from kvjax.liveness import trace as tracing
from kvjax.liveness.errors import AnalysisError

Array = np.ndarray
Program = Callable[..., Any]
LONGEST = 72  # Positions; a window beyond half of it is refused, not guessed.


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One length's answer, with what it was found from."""

  trace: tracing.Trace
  whole: cutting.Graph  # all of the past
  absorption: absorb.Absorption  # what of it need not be formed
  graph: cutting.Graph  # what of it the cut at zero recomputation leaves
  cut: cutting.Cut
  names: tuple[str, ...]  # label of each graph node
  live_for: dict[str, float]
  spans: dict[str, report.Spans]
  delay: float  # the most an output row waits for after its own position
  usual: int  # and what a row far from the beginning waits for

  def summary(self) -> tuple[Any, ...]:
    """What must not depend on the length."""
    nodes = [self.graph.nodes[i] for i in self.cut.kept]
    held = sorted((n.width, n.carry, n.unbounded) for n in nodes)
    if math.isinf(self.delay):
      return (self.delay,)
    return held, self.live_for, self.delay, self.usual


def analyze(program: Program, x: Any, axis: int = 0) -> report.LivenessReport:
  """Returns what `program` must remember in order to go on.

  Args:
    program: a function of one array to arrays, without a cache.
    x: an input; its values are examples, its length may be short.
    axis: the axis of `x` that counts positions.

  Returns:
    Live ranges, what to keep at zero recomputation, and the frontier.

  Raises:
    AnalysisError: the program cannot be analysed exactly; names the equation.
  """
  if not 0 <= axis < np.ndim(x):
    raise AnalysisError(f'axis={axis} is not an axis of x {np.shape(x)}.')
  program, rewrites = masked.recurrent(program, x, axis)
  verdict, stable = settle(program, x, axis)
  found = description.describe(verdict, stable)
  return dataclasses.replace(found, notes=rewrites + found.notes)


def settle(program: Program, x: Any, axis: int) -> tuple[Verdict, bool]:
  """The verdict two lengths agree on, and whether old rows stay."""
  before = None
  for length in _lengths(program, x, axis):
    sample = resized(x, length, axis)
    now = judge(tracing.trace(program, sample, axis), sample)
    if before is not None and before.summary() == now.summary():
      return now, witness.stable(before.trace, now.trace, sample)
    before = now
  if before is None or _generic(program, x, axis):
    kept = [] if before is None else labelling.places(before)
    raise AnalysisError(
        'what must be remembered grows with the length other than by rows and '
        f'states: {"; ".join(kept[:4])}. Write sums over the past as '
        'jnp.cumsum or lax.scan.'
    )
  return before, True


def _lengths(program: Program, x: Any, axis: int) -> Iterator[int]:
  """Short lengths first; those of a program of fixed length are its own."""
  size = np.shape(x)[axis]
  if not _generic(program, x, axis):
    yield size
    return
  start = min(max(size, 12), 40)
  jaxpr = jax.make_jaxpr(program)(resized(x, start, axis)).jaxpr
  reach = max(_compared(jaxpr), default=0)
  if reach >= LONGEST // 2:
    raise AnalysisError(
        f'positions are compared with {reach}: a window longer than the '
        f'{LONGEST // 2} positions analysed. Analyse a shorter window.'
    )
  start = max(start, 2 * reach)
  yield from (start, start + 3, 2 * start, 2 * start + 3)


def _generic(program: Program, x: Any, axis: int) -> bool:
  """Whether the program can be traced at another length than that of `x`."""
  try:
    jax.eval_shape(program, resized(x, np.shape(x)[axis] + 3, axis))
  except (TypeError, ValueError, AssertionError, IndexError):
    return False
  return True


def _compared(jaxpr: Any) -> Iterator[int]:
  """Whole numbers that something is compared with."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('lt', 'le', 'gt', 'ge'):
      for v in eqn.invars:
        if isinstance(v, core.Literal) and np.asarray(v.val).dtype == np.int32:
          yield abs(int(v.val))
    for inner in core.jaxprs_in_params(eqn.params):
      yield from _compared(inner)


def resized(x: Any, length: int, axis: int) -> Array:
  """`x` at another length; longer ones repeat its rows, with noise."""
  x = np.asarray(x)
  size = x.shape[axis]
  held = min(size, length)
  out = np.take(x, np.arange(length) % size, axis)
  more = np.take(witness.noise(0, out), range(held, length), axis)
  return np.concatenate([np.take(out, range(held), axis), more], axis)


def judge(trace: tracing.Trace, x: Array) -> Verdict:
  """The answer at one length."""
  witness.check(trace, x)
  most, usual = witness.lag(trace)
  delay: float = most
  if delay >= trace.length - 1:
    delay = math.inf
  boundary = fullest(trace)
  position = boundary.position
  whole = cutting.build(trace, boundary)
  absorbed = absorb.find(trace, boundary, whole)
  graph, cut = latest(trace, position, whole)
  if math.isinf(delay):
    cut = cutting.Cut((), (), 0, 0, 0.0)
  elif witness.poisoned(trace, x, position, graph, cut) != 0:
    raise AnalysisError(
        'noise in place of the past outside the cut moves the future; please '
        'report it.'
    )
  names = labelling.label(trace, graph, cut)
  groups, last = lifetimes(trace, graph, cut, names)
  return Verdict(
      trace,
      whole,
      absorbed,
      graph,
      cut,
      names,
      {n: _range(trace, ids, last) for n, ids in groups.items()},
      {n: _spans(trace, ids, last) for n, ids in groups.items()},
      delay,
      usual,
  )


def fullest(trace: tracing.Trace) -> passes.Boundary:
  """The boundary, of a few, across which most is read: chunks end at some."""
  last = trace.length - 3
  every = [passes.split(trace, p) for p in range(max(1, last - 3), last + 1)]
  return max(every, key=lambda b: (b.frontier.sum(), b.position))


def latest(
    trace: tracing.Trace, position: int, whole: cutting.Graph
) -> tuple[cutting.Graph, cutting.Cut]:
  """The cut at zero recomputation, and what of the past it leaves.

  With the long streams kept, what they are made of need not be known for all
  of the past: a short convolution then redoes its few rows from its inputs.
  """
  kept = np.zeros(trace.table.size, bool)
  for i in cutting.cheapest(whole, None).kept:
    if whole.nodes[i].unbounded:
      kept[whole.nodes[i].ids] = True
  graph = cutting.build(trace, passes.split(trace, position, kept))
  nodes = [
      dataclasses.replace(n, held=bool(kept[n.ids].all())) for n in graph.nodes
  ]
  graph = dataclasses.replace(graph, nodes=tuple(nodes))
  return graph, cutting.cheapest(graph, None)


def lifetimes(
    trace: tracing.Trace,
    graph: cutting.Graph,
    cut: cutting.Cut,
    names: tuple[str, ...],
) -> tuple[dict[str, Array], Array]:
  """Scalars of each named or kept tensor, and who reads each one last."""
  makers = {graph.nodes[i].maker for i in cut.redone}
  redone = np.isin(trace.table.maker, list(makers - {-1}))
  last = passes.last_read(trace, passes.needed(trace), redone)
  groups = {
      name: np.unique(np.concatenate([t.ids[~t.is_const] for t in ts]))
      for name, ts in trace.names.items()
  }
  for i in cut.kept:
    if names[i] not in groups:
      same = [graph.nodes[j].ids for j in cut.kept if names[j] == names[i]]
      groups[names[i]] = np.concatenate(same)
  return groups, last


def _range(trace: tracing.Trace, ids: Array, last: Array) -> float:
  if not ids.size:
    return math.inf  # A constant: every row reads the same one.
  ready = trace.table.available[ids]
  beyond = np.maximum(last[ids] - ready, 0)
  early = (ready <= 2) & (last[ids] >= trace.length - 1)
  return math.inf if np.any(early) else int(beyond.max())


def _spans(trace: tracing.Trace, ids: Array, last: Array) -> report.Spans:
  ready = trace.table.available[ids]
  end = np.maximum(last[ids], ready)
  return tuple((int(t), int(end[ready == t].max())) for t in np.unique(ready))
