"""The findings of an analysis, as blocks of a report and as records."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.blocks import Block, Heading, Picture, Table, Text
from experiments.reporting.plots import heat
from experiments.why_no_q_cache import plots
from experiments.why_no_q_cache.query_leaf import Form
from kvjax.liveness import Dataflow, LivenessReport
from kvjax.memory.speed.devices import Device

# Of the decoder and perhaps the encoder: which output row (first axis) reads
# which row (second axis) of every tensor.
Reads = Mapping[str, Mapping[str, np.ndarray]]


def live(title: str, report: LivenessReport) -> tuple[Block, ...]:
  """Returns the table of tensors, how long each lives, and a sentence."""
  return (
    Heading(title),
    Text(_verdict(report)),
    Table.of(
      'What lives on',
      {
        'tensor': 'name',
        'a token': lambda row: ' x '.join(map(str, row.shape)) or '1',
        'available': 'available',
        'live for': lambda row: live_range(row.live_for),
        'bytes a token': 'bytes_per_token',
        'kept': lambda row: 'kept' if row.kept else 'not kept',
        'why': 'why',
      },
      report.tensors,
      note=' '.join(report.notes),
    ),
    Picture(
      'lifetimes',
      plots.spans('How long each row lives', report.tensors),
      'A line a row, from the step that makes it to the last reader.',
    ),
  )


def live_range(count: float) -> str:
  """Returns in words the steps that read a tensor of one token."""
  if math.isinf(count):
    return 'every later step'
  words: dict[float, str] = {0: 'its own step', 1: '1 later step'}
  return words.get(count, f'{int(count)} later steps')


def _verdict(report: LivenessReport) -> str:
  if not report.frontier:
    return (
      '**No finite cache is exact**: old rows change when tokens come, so '
      'all of them are computed again.'
    )
  kept = ', '.join(f'`{name}`' for name in report.keep) or 'nothing'
  wait = '' if report.causal else f' Rows wait for {report.delay:g} tokens.'
  return f'Computing nothing twice, the past must keep {kept}.{wait}'


def trades(report: LivenessReport, device: Device) -> tuple[Block, ...]:
  """Returns the frontier of bytes and FLOPs, and the fastest on a device."""
  points = list(report.frontier)
  if not points:
    return ()
  best = report.fastest(device.bandwidth, device.flops)
  table = Table.of(
    'What may be kept, and what the rest costs a past token and step',
    {
      'keep': lambda point: ' + '.join(point.names) or 'nothing',
      'bytes a token': 'bytes_per_token',
      'state': 'state_bytes',
      'FLOPs': lambda point: int(point.flops_per_token),
      'by': lambda point: ', '.join(point.rewrites) or '-',
      device.name: lambda point: 'fastest' if point is best else '-',
    },
    points,
    note='`fastest` counts bytes over bandwidth plus FLOPs over rate.',
  )
  if len(points) < 2:
    return (table,)  # Nothing to trade.
  return (
    table,
    Picture(
      'frontier',
      plots.front('Bytes kept against FLOPs redone', points),
      'Every point is a sufficient cache; the last recomputes nothing. '
      'The table names all.',
    ),
  )


def read_by(reads: Reads) -> tuple[Block, ...]:
  """Returns which rows of every tensor each output row reads."""
  pictures = []
  for kind, panels in reads.items():
    if panels:
      title = f'Which rows each output row reads: {kind}'
      labels = [str(i) for i in range(len(next(iter(panels.values()))))]
      png = heat(title, panels, labels, 'output row ...', '... reads row')
      caption = f'The {kind}: row i of the output depends on the dark rows.'
      pictures.append(Picture(f'reads_{kind}', png, caption))
  if not pictures:
    return ()  # The program names no tensor.
  return (
    Heading('Who reads which row'),
    Text(
      'A row of the output reads the rows of q on its diagonal and whole '
      'lower triangles of k and v. Without the mask it is still one row '
      'of q: what differs is that *old* rows of the output then read new '
      'k and v, and must be computed again.'
    ),
    *pictures,
  )


def cut(graph: Dataflow) -> tuple[Block, ...]:
  """Returns the dataflow over a token boundary with the cut through it."""
  return (
    Heading('The cut'),
    Picture(
      'cut',
      plots.crossing('What a new row is made of', graph),
      'Left the rows of past tokens, right those of a new one. What the '
      'bold arrows carry over the boundary must have been kept (blue), or '
      'be made of what is.',
    ),
  )


def query_leaf(forms: Sequence[Form], leaf: int) -> tuple[Block, ...]:
  """Returns the three forms of a cache with a query leaf of `leaf` bytes."""
  return (
    Heading('A query leaf in a real cache'),
    Text(
      f'A decode step of GQA whose cache stores its queries too, {leaf:,} '
      'bytes of them. What XLA makes of that leaf, in bytes beyond the '
      'same program without it, read from the compiled programs:'
    ),
    Table.of(
      'Three forms of one step',
      {
        'the leaf': 'name',
        'arguments': 'arguments',
        'aliased': 'aliased',
        'temporary': 'temporaries',
        'reads q': _query_readers,
        'reads k': lambda form: ', '.join(form.key_readers),
      },
      forms,
    ),
  )


def _query_readers(form: Form) -> str:
  if form.query_readers is None:
    return 'no such argument'
  return ', '.join(form.query_readers) or 'no instruction'


def claims(forms: Sequence[Form], leaf: int) -> list[tuple[str, bool]]:
  """Returns what the three forms show, and whether they do."""
  both, pruned, carried = forms
  in_place = both.arguments == both.aliased == leaf
  gone = lambda f: (f.arguments, f.aliased) == (0, 0) and f.temporaries < leaf
  return [
    ('in and out: allocated and written in place', in_place),
    ('in and out: no instruction reads it', both.query_readers == ()),
    ('keys are read', all(form.key_readers for form in forms)),
    ('in, not out: the argument is pruned', gone(pruned)),
    ('in a carry, not out: eliminated', gone(carried)),
  ]


def records(report: LivenessReport, reads: Reads) -> Iterator[dict[str, Any]]:
  """Yields the analysis as records."""
  facts = ('causal', 'delay', 'keep', 'notes')
  yield {'record': 'verdict'} | {name: getattr(report, name) for name in facts}
  for row in report.tensors:
    yield {'record': 'tensor', **vars(row)}
  for point in report.frontier:
    yield {'record': 'point', **vars(point)}
  for kind, panels in reads.items():
    for name, matrix in panels.items():
      rows = matrix.astype(int)
      yield {'record': 'reads', 'of': kind, 'tensor': name, 'rows': rows}
