"""Writes the public report of an analysis."""

import math
from collections.abc import Sequence

import numpy as np

from kvjax.liveness.cut import frontier
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import scalars
from kvjax.liveness.program.scalars import Shape, Tensor
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.report import Dataflow, LivenessReport, Row
from kvjax.liveness.verdict import Analysis

_ONCE = 'made once, the same for every token'


def write_report(analysis: Analysis, stable: bool) -> LivenessReport:
  """Returns the public report of an analysis.

  Args:
    analysis: of a length that another length agrees with.
    stable: whether rows stay when the sequence is longer.
  """
  finite = stable and not math.isinf(analysis.delay)
  return LivenessReport(
    causal=stable and analysis.delay == 0,
    live_for=analysis.live_for,
    keep=_kept(analysis) if finite else (),
    frontier=frontier.find_points(analysis) if finite else (),
    delay=analysis.delay if stable else math.inf,
    static=_static(analysis.trace),
    tensors=_rows(analysis, finite),
    graph=_dataflow(analysis),
    notes=_notes(analysis, stable),
  )


def _kept(analysis: Analysis) -> tuple[str, ...]:
  """Returns what tokens leave behind, then what existed before any token."""
  names = frontier.sort_kept_names(analysis, analysis.cut, analysis.names)
  return (*names, *_static(analysis.trace))


def _static(trace: Trace) -> tuple[str, ...]:
  return tuple(
    name for name, ts in trace.names.items() if all(t.fixed for t in ts)
  )


def _rows(analysis: Analysis, finite: bool) -> tuple[Row, ...]:
  kept = _kept(analysis) if finite else ()
  static = _static(analysis.trace)
  rows = []
  for name, live in analysis.live_for.items():
    if name in static:
      shape = analysis.trace.names[name][0].shape
      first = 'before any token'
      rows.append(Row(name, shape, first, live, 0, name in kept, _ONCE))
    else:
      rows.append(_row(analysis, name, live, name in kept))
  return tuple(rows)


def _row(analysis: Analysis, name: str, live: float, kept: bool) -> Row:
  tensors = analysis.trace.names.get(name, ())
  shape, size = _kept_size(analysis, name)
  if tensors:
    shape, named_size = _named_size(analysis.trace, tensors)
    size = size if kept else named_size
  available = _available(analysis.trace, tensors)
  why = _why(live, kept)
  spans = analysis.spans[name]
  return Row(name, shape, available, live, size, kept, why, spans)


def _kept_size(analysis: Analysis, name: str) -> tuple[Shape, float]:
  """Returns the shape and the bytes that a token adds to what is kept."""
  nodes = [
    analysis.graph.nodes[i]
    for i in analysis.cut.kept
    if analysis.names[i] == name
  ]
  size = sum(n.state_bytes or n.bytes_per_token for n in nodes)
  return (sum(n.width for n in nodes),), size


def _named_size(trace: Trace, tensors: Sequence[Tensor]) -> tuple[Shape, int]:
  """Returns the shape of a row of named tensors, and bytes of all of them."""
  first = tensors[0]
  axis = perturb.row_axis(trace, first)
  shape = tuple(n for i, n in enumerate(first.shape) if i != axis)
  itemsize = np.asarray(first.const).dtype.itemsize
  return shape, len(tensors) * math.prod(shape) * itemsize


def _available(trace: Trace, tensors: Sequence[Tensor]) -> str:
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


def _dataflow(analysis: Analysis) -> Dataflow:
  sides = dict.fromkeys(analysis.cut.kept, 'kept')
  sides |= dict.fromkeys(analysis.cut.redone, 'redone')
  nodes = [
    (name, sides.get(i, 'past')) for i, name in enumerate(analysis.names)
  ]
  future = len(nodes)
  edges = [(i, future) for i in sorted(analysis.graph.future)]
  return Dataflow(
    (*nodes, ('future', 'future')), (*analysis.graph.edges, *edges)
  )


def _notes(analysis: Analysis, stable: bool) -> tuple[str, ...]:
  notes = [
    f'{analysis.trace.ops[analysis.whole.nodes[i].maker].origin.source}: '
    f'not absorbed, {reason}.'
    for i, reason in analysis.absorption.refused.items()
    if reason.startswith('a table')
  ]
  notes = list(dict.fromkeys(notes))
  if not stable:
    notes.append('old rows change with the length: no exact cache.')
  if math.isinf(analysis.delay):
    notes.append(
      f'old rows change with every token, from {_first(analysis.trace)} on: '
      'no finite cache.'
    )
  elif analysis.delay:
    notes.append(f'a row is final {int(analysis.delay)} tokens after its own.')
  return tuple(notes)


def _first(trace: Trace) -> str:
  """Returns the first equation whose row 0 waits for the last position."""
  for op in trace.ops:
    for ids in op.outs:
      ready = scalars.lookup(trace.table.available, ids)
      for axis, size in enumerate(ids.shape):
        row = np.take(ready, 0, axis)
        if size == trace.length and min(row[row >= 0], default=0) == size - 1:
          return f'{op.name} at {op.origin.source}'
  return 'the output'
