"""Tables and pictures of a benchmark, and the comparison of two runs."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Picture, Table, Text

Row = dict[str, Any]
Columns = dict[str, str | Callable[[Row], Any]]  # as in `Table.of`

# Fields that tell rows of two runs apart.
SETTING = tuple(
  'record model variant batch heads groups width slots filled context latent '
  'layers dtype tokens name'.split()
)
# Fields of a model in a config that tell two models apart, with their defaults.
_SHAPE: Row = dict.fromkeys(
  'layers width num_heads num_kv_heads key_width hidden vocab_size'.split()
) | {'dtype': 'float32', 'tied': False}


def section(title: str, rows: Sequence[Row]) -> tuple[Block, ...]:
  """Returns what one part of a run measured, and who took no part in it."""
  shown: list[Block] = []
  if timed := [row for row in rows if 'ratios' in row]:
    shown.append(timings(title, timed))
  for is_shown, columns, note in TABLES:
    if chosen := list(filter(is_shown, rows)):
      shown.append(Table.of(title, columns, chosen, note))
  return (*shown, *map(Text, _remarks(title, rows)))


def _remarks(title: str, rows: Sequence[Row]) -> list[str]:
  """Returns peaks of memory, files, why a part ended, and who is absent."""
  remarks = [
    f'{case(row)}, {row["kernel"]}: {row["found"]:,} bytes at the peak, '
    f'{row["planned"]:,} planned: {row["ratio"]:.4f}.'
    for row in rows
    if row['record'] == 'memory' and 'found' in row
  ]
  if files := [f'`{row["file"]}`' for row in rows if 'file' in row]:
    remarks.append(f'{title}: written to {", ".join(files)}.')
  remarks += [
    f'{title} ended: {row["failed"]}.' for row in rows if row.get('ended')
  ]
  if absent := dict.fromkeys(
    f'{row["name"]} ({row["skipped"]})' for row in rows if 'skipped' in row
  ):
    remarks.append(f'{title}, took no part: {"; ".join(absent)}.')
  return remarks


def timings(title: str, rows: Sequence[Row]) -> Table:
  """Returns a row each: time, bandwidth, share of the floor, ratios."""
  columns: Columns = {
    'case': case,
    'what': 'name',
    'ms': _rounded('seconds', 1e3, 3),
    'least': _rounded('fastest', 1e3, 3),
    'GB/s': _rounded('bandwidth', 1e-9, 1),
    'of floor': _rounded('of_floor', 1, 2),
  }
  if any('tokens_per_second' in row for row in rows):
    columns['tokens/s'] = _formatted('tokens_per_second', '.1f')
  if any('bar' in row for row in rows):
    columns['bar'] = _bar
  for peer in dict.fromkeys(name for row in rows for name in row['ratios']):
    columns[peer] = functools.partial(_ratio, peer)
  reads = [row['read'] / 1e9 for row in rows]
  note = (
    f'Floor: bytes over what a sum read after the race, {min(reads):.1f} to '
    f'{max(reads):.1f} GB/s. A ratio above 1 says how many times as long the '
    'peer takes.'
  )
  return Table.of(title, columns, rows, note)


def _fields(*names: str) -> Columns:
  """Returns columns of fields that are shown as they are."""
  return {name: name for name in names}


def _rounded(name: str, scale: float, digits: int) -> Callable[[Row], float]:
  """Returns the cell of a field times a scale, rounded."""
  return lambda row: round(scale * row[name], digits)


def _formatted(name: str, form: str = '') -> Callable[[Row], str]:
  """Returns the formatted cell of a field; '' in rows without it."""
  return lambda row: format(row[name], form) if name in row else ''


def _ratio(peer: str, row: Row) -> str:
  return f'{row["ratios"][peer]:.1f}x' if peer in row['ratios'] else ''


def _bar(row: Row) -> str:
  if 'bar' not in row:
    return ''
  bar = row['bar']
  value = bar['value']
  wanted = {
    'bandwidth': f'>= {value / 1e9:.0f} GB/s',
    'seconds': f'<= {1e6 * value:.1f} us',
    'of_floor': f'>= {value:.2f} of floor',
  }
  return f'{wanted[bar["field"]]}: {"met" if bar["met"] else "missed"}'


def case(row: Row) -> str:
  """Returns a row's setting in short."""
  letters = {'batch': 'B', 'heads': 'K', 'groups': 'G', 'width': 'H'}
  if 'latent' in row:
    letters = {'batch': 'B', 'heads': 'N', 'latent': 'L', 'slots': ''}
  parts = [row[name] for name in ('model', 'variant') if name in row]
  parts += [
    f'{letter}{row[name]}' for name, letter in letters.items() if name in row
  ]
  if 'filled' in row:
    parts.append(f'{row["filled"]}/{row["slots"]}')
  parts += [str(row[n]) for n in ('context', 'tokens', 'dtype') if n in row]
  return ' '.join(parts)


# The other tables: the rows that each shows, its columns, and its note.
TABLES: tuple[tuple[Callable[[Row], Any], Columns, str], ...] = (
  (
    lambda row: row['record'] == 'correctness' and 'dtype' in row,
    {
      **_fields('groups', 'tokens', 'width', 'value_width', 'dtype', 'rule'),
      'softcap': lambda row: str(row['softcap']),
      'error': _formatted('error', '.1e'),
      'error_blockwise': _formatted('error_blockwise', '.1e'),
      'lse_error': _formatted('lse_error', '.1e'),
      '': lambda r: 'passed' if r['passed'] else r.get('failed', 'FAILED'),
    },
    'Largest differences from float64; rows of several lengths, NaN in every '
    'slot without a token.',
  ),
  (
    lambda row: row.get('best'),
    {
      'case': case,
      **_fields('block', 'stages', 'splits'),
      'us': _rounded('seconds', 1e6, 1),
    },
    '',
  ),
  (
    lambda row: row['record'] == 'overhead' and 'seconds' in row,
    {
      'layers': 'layers',
      'what': 'name',
      'arrays': _formatted('leaves', 'd'),
      'ms': _rounded('seconds', 1e3, 3),
    },
    'Starting: until the call returns, with a model that computes next to '
    'nothing.',
  ),
  (
    lambda row: row['record'] == 'cold' and 'seconds' in row,
    {
      'process': lambda r: (
        f'{r["name"]} ({r["weights"]})' if 'weights' in r else r['name']
      ),
      'loaded s': _rounded('load', 1, 2),
      'first token s': _rounded('first', 1, 2),
      **_fields('written'),
      'all tokens s': _rounded('seconds', 1, 2),
      'equal': 'equal',
    },
    'Seconds since the start of a process. Equal: tokens that agree with the '
    'first row. llama.cpp multiplies by the weights of the .gguf as they are '
    'stored, in the type in brackets; kvjax decodes them first.',
  ),
  (
    lambda row: row['record'] == 'chunks' and 'ratio' in row,
    {
      'prompt': 'context',
      'chunks ms': _rounded('seconds', 1e3, 1),
      'exact ms': _rounded('exact_seconds', 1e3, 1),
      'ratio': _rounded('ratio', 1, 2),
    },
    'Compiled before; the least of the turns.',
  ),
)


def verdict(rows: Sequence[Row]) -> tuple[Block, ...]:
  """Returns how many bars are met, and what is wrong; nothing without any."""
  met: dict[str, bool] = collections.defaultdict(bool)
  for row in rows:
    if 'bar' in row:
      met[f'{row["record"]} {case(row)}'] |= row['bar']['met']
  sentences = []
  if met:
    sentences.append(f'{sum(met.values())} of {len(met)} bars met by a kernel.')
  if missed := [name for name, reached in met.items() if not reached]:
    sentences.append(f'Missed: {"; ".join(missed)}.')
  if wrong := wrongs(rows):
    sentences.append(f'Wrong: {"; ".join(wrong)}.')
  return (Text(' '.join(sentences)),) if sentences else ()


def wrongs(rows: Sequence[Row]) -> list[str]:
  """Returns what of kvjax failed, or computed something else."""
  return [
    f'{r["record"]} {case(r)} {r["name"]}'
    for r in rows
    if not r.get('passed', True)
    or ('skipped' in r and r['name'].startswith('kvjax'))
  ]


def picture(rows: Sequence[Row], read: float) -> tuple[Block, ...]:
  """Returns achieved bandwidth against context, a panel for each batch.

  A dashed line shows what the machine reads: the roofline of work that only
  reads.
  """
  panels: dict[str, dict[str, dict[float, float]]] = {}
  timed = [r for r in rows if r['record'] == 'attention' and 'ratios' in r]
  for row in sorted(timed, key=lambda row: (row['batch'], row['filled'])):
    batch, filled = row['batch'], row['filled']
    panel = panels.setdefault(f'{batch} row{"s" * (batch > 1)}', {})
    best = panel.setdefault(f'{row["name"]} {row["dtype"]}', {})
    best[filled] = max(best.get(filled, 0.0), row['bandwidth'] / 1e9)
  if not panels:
    return ()
  limit = ('read bandwidth', read / 1e9)
  png = plots.lines_below(
    'Attention alone', panels, 'filled slots of a row', 'GB/s', limit=limit
  )
  caption = 'Achieved bandwidth of the best shape; dashed: what a sum reads.'
  return (Picture('bandwidth', png, caption),)


def compare(before: Sequence[Row], after: Sequence[Row]) -> Table:
  """Returns the ratio of times of the rows that both runs have.

  The last of equal rows of a file counts; of a sweep, the best cut.

  Raises:
    ValueError: they have no row in common.
  """
  old = _timed_rows(before)
  pairs = [
    {**row, 'before': old[key]['seconds']}
    for key, row in _timed_rows(after).items()
    if key in old
  ]
  if not pairs:
    raise ValueError('the two runs have no row in common: nothing to compare.')
  return Table.of(
    'Times of two runs',
    {
      'what': 'record',
      'case': case,
      'name': 'name',
      'before ms': _rounded('before', 1e3, 3),
      'after ms': _rounded('seconds', 1e3, 3),
      'after / before': lambda row: round(row['seconds'] / row['before'], 2),
    },
    pairs,
    'Below 1: the second run is faster. Compare shares of the floor where the '
    'machines differ. Rows of `layer` before 2026-11-30 time more than later '
    'ones.',
  )


def _timed_rows(records: Sequence[Row]) -> dict[tuple[str, ...], Row]:
  """Returns timed rows by what they measured, the shape of a model included."""
  rows = {}
  config: Row = {}
  for row in records:
    if row.get('record') == 'run':
      config = row.get('config', {})
    if not {'record', 'name', 'seconds'} <= row.keys():
      continue
    if row['record'] == 'sweep' and not row.get('best'):
      continue
    shape: Row = {}
    if 'context' in row or row['record'] == 'overhead':
      name = row.get('model', next(iter(config.get('models', ())), 'model'))
      shape = _SHAPE | config.get(name, {})
      row = {'model': name, 'dtype': shape['dtype'], **row}
    key = *(row.get(x) for x in SETTING), *(shape.get(x) for x in _SHAPE)
    rows[tuple(map(str, key))] = row
  return rows
