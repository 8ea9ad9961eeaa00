"""The report people read, from a verdict."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kvjax.liveness import report
from kvjax.liveness.cut import frontier
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import record, scalars

if TYPE_CHECKING:
  from kvjax.liveness import analysis


_ONCE = 'made once, the same for every token'
_CORNERS = 'the frontier has the corners of its hull only: too many ways.'


def describe(
  verdict: 'analysis.Verdict', stable: bool
) -> report.LivenessReport:
  """The public report of a verdict."""
  causal = verdict.delay == 0 and stable
  finite = not math.isinf(verdict.delay) and stable
  front, complete = frontier.frontier(verdict) if finite else ((), True)
  return report.LivenessReport(
    causal=causal,
    live_for=verdict.live_for,
    keep=_kept(verdict) if finite else (),
    frontier=front,
    frontier_complete=complete,
    equals=frontier.equals(verdict, front) if finite else (),
    delay=verdict.delay if stable else math.inf,
    static=_static(verdict.trace),
    tensors=_rows(verdict, finite),
    graph=_dataflow(verdict),
    notes=_notes(verdict, stable) + (() if complete else (_CORNERS,)),
  )


def _kept(verdict: 'analysis.Verdict') -> tuple[str, ...]:
  """What tokens leave behind, and what was there before any."""
  names = frontier.kept_names(verdict, verdict.cut, verdict.names)
  return (*names, *_static(verdict.trace))


def _static(trace: record.Trace) -> tuple[str, ...]:
  return tuple(
    name for name, ts in trace.names.items() if all(t.fixed for t in ts)
  )


def _rows(verdict: 'analysis.Verdict', finite: bool) -> tuple[report.Row, ...]:
  kept = _kept(verdict) if finite else ()
  return tuple(
    _row(verdict, name, live, name in kept)
    for name, live in verdict.live_for.items()
  )


def _row(
  verdict: 'analysis.Verdict', name: str, live: float, kept: bool
) -> report.Row:
  trace = verdict.trace
  nodes = [
    verdict.graph.nodes[i] for i in verdict.cut.kept if verdict.names[i] == name
  ]
  tensors = trace.names.get(name, ())
  if name in _static(trace):
    first = 'before any token'
    return report.Row(name, tensors[0].shape, first, live, 0, kept, _ONCE)
  shape: tuple[int, ...] = (sum(n.width for n in nodes),)
  size = sum(n.state_bytes or n.bytes_per_token for n in nodes)
  if tensors:
    axis = perturb.row_axis(trace, tensors[0])
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


def _available(trace: record.Trace, tensors: Any) -> str:
  for tensor in tensors:
    if tensor.fixed:
      continue
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


def _first(trace: record.Trace) -> str:
  """The first equation whose row 0 waits for the last position."""
  for op in trace.ops:
    for ids in op.outs:
      ready = scalars.lookup(trace.table.available, ids)
      for axis, size in enumerate(ids.shape):
        row = np.take(ready, 0, axis)
        if size == trace.length and min(row[row >= 0], default=0) == size - 1:
          return f'{op.name} at {op.origin.source}'
  return 'the output'
