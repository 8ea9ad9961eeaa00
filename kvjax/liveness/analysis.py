"""Derives what an uncached program must remember.

The program is traced at one length and at a longer one, and both must give the
same answer. `docs/liveness.md` has the theory.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness import describe
from kvjax.liveness.cut import lifetimes, min_cut
from kvjax.liveness.cut.lifetimes import Boundary
from kvjax.liveness.cut.min_cut import Cut, Graph
from kvjax.liveness.cut.names import Labels, describe_kept
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import lengths, perturb
from kvjax.liveness.program.recorder import trace_program
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.recurrence import rewrite
from kvjax.liveness.report import LivenessReport, Spans
from kvjax.liveness.verdict import Analysis

Array = np.ndarray
Program = Callable[..., Any]


def analyze(program: Program, x: Any, axis: int = 0) -> LivenessReport:
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
  program, rewrites = rewrite.replace_sums(program, x, axis)
  analysis, stable = settle(program, x, axis)
  report = describe.write_report(analysis, stable)
  return dataclasses.replace(report, notes=rewrites + report.notes)


def settle(program: Program, x: Any, axis: int) -> tuple[Analysis, bool]:
  """Returns the analysis that two lengths agree on, and whether rows stay.

  Rows stay if a longer sequence does not change the rows of a shorter one.

  Raises:
    AnalysisError: no two lengths agree, or the evidence contradicts.
  """
  step = lengths.find_step(program, x, axis)
  analyze_at = lambda length: analyze_trace(
    trace_program(program, lengths.resize(x, length, axis), axis)
  )
  shortest, *longer = lengths.choose_lengths(program, x, axis, step)
  first = analyze_at(shortest)
  before = first
  for length in longer:
    now = analyze_at(length)
    if before.summary() == now.summary():
      longest = lengths.round_up(lengths.LONGEST, step)
      if (
        _cannot_change(now, longest)
        or not lengths.accepts(program, x, axis, longest)
        or analyze_at(longest).summary() == now.summary()
      ):
        _check(before, lengths.resize(x, before.trace.length, axis))
        sample = lengths.resize(x, length, axis)
        return now, perturb.rows_stay(before.trace, now.trace, sample)
    before = now
  _check(first, lengths.resize(x, shortest, axis))
  if longer:
    raise AnalysisError(
      'no two lengths agree on what must be remembered, which grows other '
      f'than by rows and states: {"; ".join(describe_kept(before)[:4])}. '
      'Write sums over the past as jnp.cumsum or lax.scan, and shorten '
      'windows and blocks.'
    )
  return first, True


def _cannot_change(analysis: Analysis, longest: int) -> bool:
  """Returns whether the longest length needs no analysis.

  A window that no comparison states, from NumPy or a slice, shows at a length
  beyond its end only. States have no windows.
  """
  if longest <= analysis.trace.length:
    return True
  kept = [analysis.graph.nodes[i] for i in analysis.cut.kept]
  return bool(kept) and all(node.recurrent for node in kept)


def _check(analysis: Analysis, x: Array) -> None:
  """Raises where numbers contradict the relations or noise passes the cut."""
  perturb.check(analysis.trace, x)
  if math.isinf(analysis.delay):
    return
  if perturb.poison(analysis, x) != 0:
    raise AnalysisError(
      'noise in place of the past outside the cut moves the future; please '
      'report it.'
    )


def analyze_trace(trace: Trace) -> Analysis:
  """Returns the analysis of one length, from the relations."""
  longest_wait, usual_delay = perturb.find_delay(trace)
  # A row that waits for the end waits for ever when the sequence grows.
  never_final = longest_wait >= trace.length - 1
  boundary = find_boundary(trace)
  whole = min_cut.build_graph(trace, boundary)
  graph, cut = _cut_latest(trace, boundary.position, whole)
  if never_final:
    cut = Cut((), (), 0, 0, 0.0)
  names = Labels(trace, graph).name_nodes(cut)
  makers = {graph.nodes[i].maker for i in cut.redone}
  # The input has no maker and is never redone.
  redone = np.isin(trace.table.maker, list(makers - {-1}))
  last = lifetimes.find_last_reads(trace, lifetimes.find_needed(trace), redone)
  groups = _named_ids(trace, graph, cut, names)
  return Analysis(
    trace=trace,
    boundary=boundary,
    whole=whole,
    graph=graph,
    cut=cut,
    names=names,
    live_for={n: _live_range(trace, ids, last) for n, ids in groups.items()},
    spans={n: _spans(trace, ids, last) for n, ids in groups.items()},
    delay=math.inf if never_final else longest_wait,
    usual_delay=usual_delay,
  )


def find_boundary(trace: Trace) -> Boundary:
  """Returns the boundary, of four, across which most scalars are read.

  Programs of chunks remember less where a chunk ends.
  """
  # Two positions after the boundary show what is read more than once.
  last = trace.length - 3
  candidates = range(max(1, last - 3), last + 1)
  fullest = max(
    candidates, key=lambda p: (lifetimes.count_crossing(trace, p), p)
  )
  return lifetimes.split(trace, fullest)


def _cut_latest(trace: Trace, position: int, whole: Graph) -> tuple[Graph, Cut]:
  """Returns the cut at zero recomputation, and the graph that it cuts.

  With the long streams and states kept, what they are made of need not be
  known for all of the past: a short convolution then redoes its few rows from
  its inputs, and features of keys that wait for a state from those keys.
  """
  kept = np.zeros(trace.table.size, bool)
  for i in min_cut.find_cheapest(whole, None).kept:
    if whole.nodes[i].unbounded or whole.nodes[i].recurrent:
      kept[whole.nodes[i].ids] = True
  graph = min_cut.build_graph(trace, lifetimes.split(trace, position, kept))
  nodes = [
    dataclasses.replace(n, decided=bool(kept[n.ids].all())) for n in graph.nodes
  ]
  graph = dataclasses.replace(graph, nodes=tuple(nodes))
  return graph, min_cut.find_cheapest(graph, None)


def _named_ids(
  trace: Trace, graph: Graph, cut: Cut, names: tuple[str, ...]
) -> dict[str, Array]:
  """Returns the scalars of each named or kept tensor."""
  groups = dict(trace.named_ids)
  for i in cut.kept:
    if names[i] not in groups:
      parts = [graph.nodes[j].ids for j in cut.kept if names[j] == names[i]]
      groups[names[i]] = np.concatenate(parts)
  return groups


def _live_range(trace: Trace, ids: Array, last: Array) -> float:
  """Returns for how many tokens after its own a tensor is read."""
  if not ids.size:
    return math.inf  # A constant: every row reads the same one.
  ready = trace.table.available[ids]
  # Rows from the beginning that are read to the end have no window. Summaries
  # of blocks begin with the first block.
  first = int(ready.min())
  beginning = max(2, first if first <= trace.length // 4 else 0)
  read_to_end = last[ids] >= trace.length - 1
  if np.any((ready <= beginning) & read_to_end):
    return math.inf
  return int(np.maximum(last[ids] - ready, 0).max())


def _spans(trace: Trace, ids: Array, last: Array) -> Spans:
  ready = trace.table.available[ids]
  end = np.maximum(last[ids], ready)
  return tuple((int(t), int(end[ready == t].max())) for t in np.unique(ready))
