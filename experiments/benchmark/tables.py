"""Tables and pictures of a benchmark, and the comparison of two runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Picture, Table, Text

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], Any]]  # cell of a row by column

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
  tables = (
    (timings, [r for r in rows if 'ratios' in r]),
    (checks, [r for r in _of(rows, 'correctness') if 'dtype' in r]),
    (tiles, [r for r in rows if r.get('best')]),
    (overheads, [r for r in _of(rows, 'overhead') if 'seconds' in r]),
  )
  return (
    *(show(title, chosen) for show, chosen in tables if chosen),
    *(occupied(r) for r in _of(rows, 'memory') if 'found' in r),
    *_remarks(title, rows),
  )


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
  return [row for row in rows if row['record'] == kind]


def _remarks(title: str, rows: Sequence[Row]) -> list[Text]:
  """Returns the files of a part, why it ended, and who took no part."""
  remarks = []
  if files := [f'`{r["file"]}`' for r in rows if 'file' in r]:
    remarks.append(f'{title}: written to {", ".join(files)}.')
  for row in rows:
    if row.get('ended'):
      remarks.append(f'{title} ended: {row["failed"].rstrip(".")}.')
  reasons = dict.fromkeys(
    f'{r["name"]} ({r["skipped"]})' for r in rows if 'skipped' in r
  )
  if reasons:
    remarks.append(f'{title}, took no part: {"; ".join(reasons)}.')
  return list(map(Text, remarks))


def _tabulate(
  title: str, rows: Sequence[Row], columns: Columns, note: str = ''
) -> Table:
  cells = [[cell(row) for cell in columns.values()] for row in rows]
  return Table(title, tuple(columns), cells, note)


def _field(name: str) -> Callable[[Row], Any]:
  return lambda row: row[name]


def _number(name: str, scale: float, digits: int) -> Callable[[Row], float]:
  """Returns the cell of a field times a scale, rounded."""
  return lambda row: round(scale * row[name], digits)


def _optional(name: str, form: str) -> Callable[[Row], str]:
  """Returns the formatted cell of a field; '' in rows without it."""
  return lambda row: format(row[name], form) if name in row else ''


def timings(title: str, rows: Sequence[Row]) -> Table:
  """Returns a row each: time, bandwidth, share of the floor, ratios."""
  columns: dict[str, Callable[[Row], Any]] = {
    'case': case,
    'what': _field('name'),
    'ms': _number('seconds', 1e3, 3),
    'least': _number('fastest', 1e3, 3),
    'GB/s': _number('bandwidth', 1e-9, 1),
    'of floor': _number('of_floor', 1, 2),
    'tokens/s': _optional('tokens_per_second', '.1f'),
    'bar': _bar,
  }
  for column, name in {'tokens/s': 'tokens_per_second', 'bar': 'bar'}.items():
    if not any(name in row for row in rows):
      del columns[column]
  for peer in dict.fromkeys(name for row in rows for name in row['ratios']):
    columns[peer] = lambda row, peer=peer: (
      f'{row["ratios"][peer]:.1f}x' if peer in row['ratios'] else ''
    )
  reads = [row['read'] / 1e9 for row in rows]
  return _tabulate(
    title,
    rows,
    columns,
    f'Floor: bytes over what a sum read after the race, {min(reads):.1f} to '
    f'{max(reads):.1f} GB/s. A ratio above 1 says how many times as long the '
    'peer takes.',
  )


def checks(title: str, rows: Sequence[Row]) -> Table:
  """Returns a row a problem: errors against float64, and whether it passed."""
  names = 'groups tokens width value_width dtype rule softcap'.split()
  errors = ('error', 'error_blockwise', 'lse_error')
  return _tabulate(
    title,
    rows,
    {name: lambda r, name=name: str(r[name]) for name in names}
    | {name: _optional(name, '.1e') for name in errors}
    | {'': lambda r: 'passed' if r['passed'] else r.get('failed', 'FAILED')},
    'Largest differences from float64; rows of several lengths, NaN in every '
    'slot without a token.',
  )


def tiles(title: str, rows: Sequence[Row]) -> Table:
  """Returns the fastest cut of each problem."""
  cuts = {name: _field(name) for name in ('block', 'stages', 'splits')}
  columns = {'case': case, **cuts, 'us': _number('seconds', 1e6, 1)}
  return _tabulate(title, rows, columns)


def overheads(title: str, rows: Sequence[Row]) -> Table:
  """Returns what steps of a depth cost their host."""
  return _tabulate(
    title,
    rows,
    {
      'layers': _field('layers'),
      'what': _field('name'),
      'arrays': _optional('leaves', 'd'),
      'ms': _number('seconds', 1e3, 3),
    },
    'Starting: until the call returns, with a model that computes next to '
    'nothing.',
  )


def occupied(row: Row) -> Text:
  """Returns what a device says that a call occupied."""
  return Text(
    f'{case(row)}, {row["kernel"]}: {row["found"]:,} bytes at the peak, '
    f'{row["planned"]:,} planned: {row["ratio"]:.4f}.'
  )


def verdict(rows: Sequence[Row]) -> tuple[Block, ...]:
  """Returns how many bars are met, and what is wrong; nothing without any."""
  met: dict[str, bool] = {}
  for row in rows:
    if 'bar' in row:
      name = f'{row["record"]} {case(row)}'
      met[name] = met.get(name, False) or row['bar']['met']
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


def picture(rows: Sequence[Row], read: float) -> tuple[Block, ...]:
  """Returns achieved bandwidth against context, a panel for each batch.

  A dashed line shows what the machine reads: the roofline of work that only
  reads.
  """
  panels: dict[str, dict[str, dict[float, float]]] = {}
  timed = [r for r in _of(rows, 'attention') if 'ratios' in r]
  for row in sorted(timed, key=lambda row: (row['batch'], row['filled'])):
    batch, filled = row['batch'], row['filled']
    panel = panels.setdefault(f'{batch} row{"s" * (batch > 1)}', {})
    best = panel.setdefault(f'{row["name"]} {row["dtype"]}', {})
    best[filled] = max(best.get(filled, 0.0), row['bandwidth'] / 1e9)
  if not panels:
    return ()
  png = plots.lines_below(
    'Attention alone',
    panels,
    'filled slots of a row',
    'GB/s',
    limit=('read bandwidth', read / 1e9),
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
  return _tabulate(
    'Times of two runs',
    pairs,
    {
      'what': _field('record'),
      'case': case,
      'name': _field('name'),
      'before ms': _number('before', 1e3, 3),
      'after ms': _number('seconds', 1e3, 3),
      'after / before': lambda row: round(row['seconds'] / row['before'], 2),
    },
    'Below 1: the second run is faster. Compare shares of the floor where the '
    'machines differ.',
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
