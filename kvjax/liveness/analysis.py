"""From an uncached program to what it must remember.

The program is traced at one length and at a longer one, and both must say the
same. `docs/liveness.md` has the theory.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness import describe, report
from kvjax.liveness.cut import absorption as absorb
from kvjax.liveness.cut import lifetimes as passes
from kvjax.liveness.cut import min_cut
from kvjax.liveness.cut import names as labelling
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import lengths, perturb
from kvjax.liveness.program import record
from kvjax.liveness.recurrence import rewrite

Array = np.ndarray
Program = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One length's answer, with what it was found from."""

  trace: record.Trace
  boundary: passes.Boundary
  whole: min_cut.Graph  # all of the past
  graph: min_cut.Graph  # what of it the cut at zero recomputation leaves
  cut: min_cut.Cut
  names: tuple[str, ...]  # label of each graph node
  live_for: dict[str, float]
  spans: dict[str, report.Spans]
  delay: float  # the most an output row waits for after its own position
  usual: int  # and what a row far from the beginning waits for

  @functools.cached_property
  def absorption(self) -> absorb.Absorption:
    """What of the past need not be formed."""
    return absorb.find(self.trace, self.boundary, self.whole)

  def summary(self) -> tuple[Any, ...]:
    """What must not depend on the length."""
    nodes = [self.graph.nodes[i] for i in self.cut.kept]
    held = sorted((n.width, n.carry, n.unbounded, n.gap) for n in nodes)
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
  program, rewrites = rewrite.recurrent(program, x, axis)
  verdict, stable = settle(program, x, axis)
  found = describe.describe(verdict, stable)
  return dataclasses.replace(found, notes=rewrites + found.notes)


def settle(program: Program, x: Any, axis: int) -> tuple[Verdict, bool]:
  """The verdict two lengths agree on, and whether old rows stay."""
  step = lengths.step(program, x, axis)
  at = lambda length: _at(program, x, axis, length)
  shortest, *longer = lengths.of(program, x, axis, step)
  first = before = at(shortest)
  for length in longer:
    now = at(length)
    if before.summary() == now.summary():
      if _lasts(program, x, axis, step, now):
        sample = lengths.resized(x, length, axis)
        _check(before, lengths.resized(x, before.trace.length, axis))
        return now, perturb.stable(before.trace, now.trace, sample)
    before = now
  _check(first, lengths.resized(x, shortest, axis))
  if longer:
    raise AnalysisError(
      'no two lengths agree on what must be remembered, which grows other '
      f'than by rows and states: {"; ".join(labelling.places(before)[:4])}. '
      'Write sums over the past as jnp.cumsum or lax.scan, and shorten '
      'windows and blocks.'
    )
  return first, True


def _at(program: Program, x: Any, axis: int, length: int) -> Verdict:
  sample = lengths.resized(x, length, axis)
  return judge(record.trace(program, sample, axis))


def _lasts(
  program: Program, x: Any, axis: int, step: int, found: Verdict
) -> bool:
  """Whether the same is kept at a length where a wider window would end.

  Masks that no comparison states, from NumPy or a slice, show no other way.
  States have no windows.
  """
  length = lengths.whole(lengths.LONGEST, step)
  if length <= found.trace.length:
    return True
  states = all(found.graph.nodes[i].recurrent for i in found.cut.kept)
  if found.cut.kept and states:
    return True
  if not lengths.takes(program, x, axis, length):
    return True
  return _at(program, x, axis, length).summary() == found.summary()


def _check(found: Verdict, x: Array) -> None:
  """Raises where numbers part from the relations, or noise gets through."""
  perturb.check(found.trace, x)
  if not math.isinf(found.delay):
    at = found.boundary.position
    if perturb.poisoned(found.trace, x, at, found.graph, found.cut) != 0:
      raise AnalysisError(
        'noise in place of the past outside the cut moves the future; please '
        'report it.'
      )


def judge(trace: record.Trace) -> Verdict:
  """The answer at one length, from the relations."""
  most, usual = perturb.lag(trace)
  delay: float = most
  if delay >= trace.length - 1:
    delay = math.inf
  boundary = fullest(trace)
  whole = min_cut.build(trace, boundary)
  graph, cut = latest(trace, boundary.position, whole)
  if math.isinf(delay):
    cut = min_cut.Cut((), (), 0, 0, 0.0)
  names = labelling.Labels(trace, graph).of(cut)
  groups, last = lifetimes(trace, graph, cut, names)
  return Verdict(
    trace,
    boundary,
    whole,
    graph,
    cut,
    names,
    {n: _range(trace, ids, last) for n, ids in groups.items()},
    {n: _spans(trace, ids, last) for n, ids in groups.items()},
    delay,
    usual,
  )


def fullest(trace: record.Trace) -> passes.Boundary:
  """The boundary, of a few, across which most is read: chunks end at some."""
  last = trace.length - 3
  every = range(max(1, last - 3), last + 1)
  most = max(every, key=lambda p: (passes.crossing(trace, p), p))
  return passes.split(trace, most)


def latest(
  trace: record.Trace, position: int, whole: min_cut.Graph
) -> tuple[min_cut.Graph, min_cut.Cut]:
  """The cut at zero recomputation, and what of the past it leaves.

  With the long streams and states kept, what they are made of need not be
  known for all of the past: a short convolution then redoes its few rows from
  its inputs, and features of keys that wait for a state from those keys.
  """
  kept = np.zeros(trace.table.size, bool)
  for i in min_cut.cheapest(whole, None).kept:
    if whole.nodes[i].unbounded or whole.nodes[i].carry:
      kept[whole.nodes[i].ids] = True
  graph = min_cut.build(trace, passes.split(trace, position, kept))
  nodes = [
    dataclasses.replace(n, held=bool(kept[n.ids].all())) for n in graph.nodes
  ]
  graph = dataclasses.replace(graph, nodes=tuple(nodes))
  return graph, min_cut.cheapest(graph, None)


def lifetimes(
  trace: record.Trace,
  graph: min_cut.Graph,
  cut: min_cut.Cut,
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


def _range(trace: record.Trace, ids: Array, last: Array) -> float:
  if not ids.size:
    return math.inf  # A constant: every row reads the same one.
  ready = trace.table.available[ids]
  beyond = np.maximum(last[ids] - ready, 0)
  first = int(ready.min())  # Summaries of blocks begin with the first block.
  begun = max(2, first if first <= trace.length // 4 else 0)
  early = (ready <= begun) & (last[ids] >= trace.length - 1)
  return math.inf if np.any(early) else int(beyond.max())


def _spans(trace: record.Trace, ids: Array, last: Array) -> report.Spans:
  ready = trace.table.available[ids]
  end = np.maximum(last[ids], ready)
  return tuple((int(t), int(end[ready == t].max())) for t in np.unique(ready))
