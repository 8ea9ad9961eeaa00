"""Names for tensors that have none, and the report people read."""

import collections
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kvjax.liveness import cut as cutting
from kvjax.liveness import elements, report, witness
from kvjax.liveness import trace as tracing

if TYPE_CHECKING:
  from kvjax.liveness import analysis

Array = np.ndarray


def label(
    trace: tracing.Trace, graph: cutting.Graph, cut: cutting.Cut
) -> tuple[str, ...]:
  """A name for every tensor: its most special own, or that of its equation.

  Tensors kept together for one reader (the halves of a rotated key) share one.
  """
  size = {
      name: len(np.unique(np.concatenate([t.ids.reshape(-1) for t in ts])))
      for name, ts in trace.names.items()
  }
  together = _together(trace, graph, cut)
  count: collections.Counter[str] = collections.Counter()
  shared: dict[int, str] = {}
  out = []
  for i, node in enumerate(graph.nodes):
    if node.names:
      out.append(min(node.names, key=lambda n: size[n]))
      continue
    one = together.get(i, i)
    if one not in shared:
      base = _base(trace, node)
      count[base] += 1
      shared[one] = base if count[base] == 1 else f'{base}.{count[base]}'
    out.append(shared[one])
  return tuple(out)


def places(verdict: 'analysis.Verdict') -> list[str]:
  """What is kept, and the equations that make it."""
  out = {}
  for i in verdict.cut.kept:
    maker = verdict.graph.nodes[i].maker
    source = 'the input'
    if maker >= 0:
      op = verdict.trace.ops[maker]
      source = f'{op.name} at {op.origin.source}'
    out[verdict.names[i]] = source
  return [f'{name} ({source})' for name, source in out.items()]


def _together(
    trace: tracing.Trace, graph: cutting.Graph, cut: cutting.Cut
) -> dict[int, int]:
  """For kept nodes, the first of those that are one tensor to a reader."""
  stems = _stems(trace, graph)
  out: dict[int, int] = {}
  for i in cut.kept:
    out[i] = i
    a = graph.nodes[i]
    for j in cut.kept[: cut.kept.index(i)]:
      b = graph.nodes[j]
      same = stems[i] == stems[j] and a.readers == b.readers
      part = _equation(trace, a) == _equation(trace, b)
      if same or (part and a.readers & b.readers):
        out[i] = out[j]
        break
  return out


def _equation(trace: tracing.Trace, node: Any) -> Any:
  return None if node.maker < 0 else trace.ops[node.maker].origin.equation


def _base(trace: tracing.Trace, node: Any) -> str:
  if node.maker < 0:
    return 'x'
  return 'carry' if node.carry else trace.ops[node.maker].name


def _stems(trace: tracing.Trace, graph: cutting.Graph) -> list[frozenset[Any]]:
  """For every node, the equations its pointwise part starts from."""
  made_of = collections.defaultdict(set)
  for a, b in graph.edges:
    made_of[b].add(a)
  memo: dict[int, frozenset[Any]] = {}

  def stem(i: int) -> frozenset[Any]:
    if i not in memo:
      memo[i] = frozenset()  # A state made from itself ends here.
      memo[i] = _own_stem(trace, graph.nodes[i]) or frozenset().union(
          *(stem(j) for j in made_of[i])
      )
    return memo[i]

  return [stem(i) for i in range(len(graph.nodes))]


def _own_stem(trace: tracing.Trace, node: Any) -> frozenset[Any]:
  if node.maker < 0:
    return frozenset([-1])
  op = trace.ops[node.maker]
  mixes = op.name == 'dot_general'
  return frozenset([op.origin.equation] if mixes else [])


def describe(
    verdict: 'analysis.Verdict', stable: bool
) -> report.LivenessReport:
  """The public report of a verdict."""
  causal = verdict.delay == 0 and stable
  finite = not math.isinf(verdict.delay) and stable
  return report.LivenessReport(
      causal=causal,
      live_for=verdict.live_for,
      keep=_names(verdict, verdict.cut) if finite else (),
      frontier=_frontier(verdict) if finite else (),
      delay=verdict.delay if stable else math.inf,
      static=_static(verdict.trace),
      tensors=_rows(verdict, finite),
      graph=_dataflow(verdict),
      notes=_notes(verdict, stable),
  )


def _frontier(verdict: 'analysis.Verdict') -> tuple[report.Point, ...]:
  """The optima over all of the past, up to the one that redoes nothing."""
  whole, last = verdict.whole, _point(verdict, verdict.cut)
  points = []
  price = verdict.absorption.price
  for cut in cutting.frontier(whole, price):
    names = label(verdict.trace, whole, cut)
    used = dict.fromkeys(names[i] for i in cut.redone if i in price)
    point = dataclasses.replace(
        _point(verdict, cut, names),
        rewrites=tuple(f'absorption of {name}' for name in used),
    )
    if (point.bytes_per_token, point.state_bytes) < (
        last.bytes_per_token,
        last.state_bytes,
    ):
      points.append(point)
  return (*points, last)


def _names(
    verdict: 'analysis.Verdict',
    cut: cutting.Cut,
    labels: tuple[str, ...] | None = None,
) -> tuple[str, ...]:
  labels = labels or verdict.names
  names = dict.fromkeys(labels[i] for i in cut.kept)
  order = list(verdict.trace.names)
  rank = lambda n: order.index(n) if n in order else len(order)
  return tuple(sorted(names, key=rank))


def _point(
    verdict: 'analysis.Verdict',
    cut: cutting.Cut,
    labels: tuple[str, ...] | None = None,
) -> report.Point:
  return report.Point(
      _names(verdict, cut, labels),
      cut.bytes_per_token,
      cut.flops_per_token,
      cut.state_bytes,
  )


def _static(trace: tracing.Trace) -> tuple[str, ...]:
  return tuple(
      name for name, ts in trace.names.items() if all(t.fixed for t in ts)
  )


def _rows(verdict: 'analysis.Verdict', finite: bool) -> tuple[report.Row, ...]:
  kept = _names(verdict, verdict.cut) if finite else ()
  return tuple(
      _row(verdict, name, live, name in kept)
      for name, live in verdict.live_for.items()
  )


def _row(
    verdict: 'analysis.Verdict', name: str, live: float, kept: bool
) -> report.Row:
  trace = verdict.trace
  nodes = [
      verdict.graph.nodes[i]
      for i in verdict.cut.kept
      if verdict.names[i] == name
  ]
  tensors = trace.names.get(name, ())
  shape: tuple[int, ...] = (sum(n.width for n in nodes),)
  size = sum(n.width * n.itemsize for n in nodes)
  if tensors:
    axis = witness.row_axis(trace, tensors[0])
    shape = tuple(n for i, n in enumerate(tensors[0].shape) if i != axis)
    one = math.prod(shape) * np.asarray(tensors[0].const).dtype.itemsize
    size = size if kept else len(tensors) * one
  return report.Row(
      name,
      shape,
      _available(trace, tensors),
      live,
      size,
      kept,
      _why(live, kept),
      verdict.spans[name],
  )


def _available(trace: tracing.Trace, tensors: Any) -> str:
  for tensor in tensors:
    if tensor.fixed:
      return 'before any token'
    ready = trace.table.available[tensor.ids[~tensor.is_const]]
    if ready.min() == trace.length - 1:
      return 'with the last token'
  return 'with its token'


def _why(live: float, kept: bool) -> str:
  if live == 0:
    return 'read with its own token only'
  who = 'every later token' if math.isinf(live) else f'the next {int(live)}'
  if kept:
    return f'read by {who}'
  return f'read by {who}, through what is kept or redone'


def _dataflow(verdict: 'analysis.Verdict') -> report.Dataflow:
  sides = dict.fromkeys(verdict.cut.kept, 'kept')
  sides |= dict.fromkeys(verdict.cut.redone, 'redone')
  nodes = tuple(
      (name, sides.get(i, 'past')) for i, name in enumerate(verdict.names)
  )
  sink = len(nodes)
  future = tuple((i, sink) for i in sorted(verdict.graph.future))
  return report.Dataflow(
      (*nodes, ('future', 'future')), (*verdict.graph.edges, *future)
  )


def _notes(verdict: 'analysis.Verdict', stable: bool) -> tuple[str, ...]:
  notes = [
      f'{verdict.trace.ops[verdict.whole.nodes[i].maker].origin.source}: '
      f'not absorbed, {reason}.'
      for i, reason in verdict.absorption.refused.items()
      if reason.startswith('a table')
  ]
  notes = list(dict.fromkeys(notes))
  if not stable:
    notes.append('old rows change with the length: no exact cache.')
  if math.isinf(verdict.delay):
    notes.append(
        f'old rows change with every token, from {_first(verdict.trace)} on: '
        'no finite cache.'
    )
  elif verdict.delay:
    notes.append(f'a row is final {int(verdict.delay)} tokens after its own.')
  return tuple(notes)


def _first(trace: tracing.Trace) -> str:
  """The first equation whose row 0 waits for the last position."""
  for op in trace.ops:
    for ids in op.outs:
      ready = elements.lookup(trace.table.available, ids)
      for axis, size in enumerate(ids.shape):
        row = np.take(ready, 0, axis)
        if size == trace.length and min(row[row >= 0], default=0) == size - 1:
          return f'{op.name} at {op.origin.source}'
  return 'the output'
