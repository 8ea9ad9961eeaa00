"""Tables and pictures of a benchmark, and of two held against each other."""

from collections.abc import Sequence
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Picture, Table, Text

Row = dict[str, Any]
SETTING = (
  'record', 'model', 'variant', 'batch', 'heads', 'groups', 'width', 'slots',
  'filled', 'context', 'latent', 'layers', 'dtype', 'tokens', 'name',
)  # fmt: skip

_PACE = 'tokens_per_second'
# What makes two models the same one, in their configs; None: no default.
_SHAPE: Row = dict.fromkeys((
  'layers', 'width', 'num_heads', 'num_kv_heads', 'key_width', 'hidden',
  'vocab_size',
)) | {'dtype': 'float32', 'tied': False}  # fmt: skip


def section(title: str, rows: Sequence[Row]) -> tuple[Block, ...]:
  """Returns what one part of a run found, and who took no part in it."""
  blocks: list[Block] = []
  timed = [r for r in rows if 'ratios' in r]
  if timed:
    blocks.append(table(title, timed))
  checked = [r for r in rows if r['record'] == 'correctness' and 'dtype' in r]
  if checked:
    blocks.append(checks(title, checked))
  best = [r for r in rows if r.get('best')]
  if best:
    blocks.append(tiles(title, best))
  costs = [r for r in rows if r['record'] == 'overhead' and 'seconds' in r]
  if costs:
    blocks.append(overheads(title, costs))
  memory = [r for r in rows if r['record'] == 'memory']
  blocks += [occupied(r) for r in memory if 'found' in r]
  files = [f'`{r["file"]}`' for r in rows if 'file' in r]
  if files:
    blocks.append(Text(f'{title}: written to {", ".join(files)}.'))
  ended = [r['failed'].rstrip('.') for r in rows if r.get('ended')]
  blocks += [Text(f'{title} ended: {failed}.') for failed in ended]
  reasons = dict.fromkeys(
    f'{r["name"]} ({r["skipped"]})' for r in rows if 'skipped' in r
  )
  if reasons:
    blocks.append(Text(f'{title}, took no part: {"; ".join(reasons)}.'))
  return tuple(blocks)


def occupied(row: Row) -> Text:
  """Returns what a device says that a call occupied."""
  return Text(
    f'{case(row)}, {row["kernel"]}: {row["found"]:,} bytes at the peak, '
    f'{row["planned"]:,} planned: {row["ratio"]:.4f}.'
  )


def checks(title: str, rows: Sequence[Row]) -> Table:
  """Returns a row a problem: errors against float64, and whether it passed."""
  names = 'groups', 'tokens', 'width', 'value_width', 'dtype', 'rule', 'softcap'
  errors = 'error', 'error_blockwise', 'lse_error'
  return Table(
    title,
    (*names, *errors, ''),
    [
      (
        *(str(r[name]) for name in names),
        *(f'{r[name]:.1e}' if name in r else '' for name in errors),
        'passed' if r['passed'] else r.get('failed', 'FAILED'),
      )
      for r in rows
    ],
    'Largest differences from float64; rows of several lengths, NaN in every '
    'slot without a token.',
  )


def tiles(title: str, rows: Sequence[Row]) -> Table:
  """Returns the fastest cut of each problem."""
  return Table(
    title,
    ('case', 'block', 'stages', 'splits', 'us'),
    [
      (
        case(r), r['block'], r['stages'], r['splits'],
        round(1e6 * r['seconds'], 1),
      )
      for r in rows
    ],
  )  # fmt: skip


def overheads(title: str, rows: Sequence[Row]) -> Table:
  """Returns what steps of a depth cost their host."""
  return Table(
    title,
    ('layers', 'what', 'arrays', 'ms'),
    [
      (
        r['layers'], r['name'], str(r.get('leaves', '')),
        round(1e3 * r['seconds'], 3),
      )
      for r in rows
    ],
    'Starting: until the call returns, with a model that computes next to '
    'nothing.',
  )  # fmt: skip


def verdict(rows: Sequence[Row]) -> tuple[Block, ...]:
  """Returns how many bars are met, and what is wrong; nothing without any."""
  met: dict[tuple[str, str], bool] = {}
  for r in rows:
    if 'bar' in r:
      key = r['record'], case(r)
      met[key] = met.get(key, False) or r['bar']['met']
  lines = []
  if met:
    missed = [' '.join(key) for key, reached in met.items() if not reached]
    count = len(met) - len(missed)
    lines.append(f'{count} of {len(met)} bars met by a kernel.')
    if missed:
      lines.append(f'Missed: {"; ".join(missed)}.')
  wrong = wrongs(rows)
  if wrong:
    lines.append(f'Wrong: {"; ".join(wrong)}.')
  return (Text(' '.join(lines)),) if lines else ()


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
  field, value, met = (row['bar'][n] for n in ('field', 'value', 'met'))
  units = {
    'bandwidth': lambda x: f'>= {x / 1e9:.0f} GB/s',
    'seconds': lambda x: f'<= {1e6 * x:.1f} us',
    'of_floor': lambda x: f'>= {x:.2f} of floor',
  }
  return f'{units[field](value)}: {"met" if met else "missed"}'


def table(title: str, rows: Sequence[Row]) -> Table:
  """Returns a row each: time, bandwidth, share of the floor, ratios."""
  reads = [row['read'] for row in rows]
  least, most = min(reads), max(reads)
  peers = list(dict.fromkeys(p for row in rows for p in row['ratios']))
  bar = ('bar',) if any('bar' in row for row in rows) else ()
  pace = ('tokens/s',) if any(_PACE in row for row in rows) else ()
  return Table(
    title,
    ('case', 'what', 'ms', 'least', 'GB/s', 'of floor', *pace, *bar, *peers),
    [
      (
        case(row),
        row['name'],
        round(1e3 * row['seconds'], 3),
        round(1e3 * row['fastest'], 3),
        round(row['bandwidth'] / 1e9, 1),
        round(row['of_floor'], 2),
        *(f'{row[_PACE]:.1f}' if _PACE in row else '' for _ in pace),
        *(_bar(row) for _ in bar),
        *(
          f'{row["ratios"][p]:.1f}x' if p in row['ratios'] else ''
          for p in peers
        ),
      )
      for row in rows
    ],
    f'Floor: bytes over what a sum read after the race, {least / 1e9:.1f} to '
    f'{most / 1e9:.1f} GB/s. A ratio above 1 says how many times as long the '
    'peer takes.',
  )


def case(row: Row) -> str:
  """Returns a row's setting in short."""
  names = {'batch': 'B', 'heads': 'K', 'groups': 'G', 'width': 'H'}
  parts = [row[name] for name in ('model', 'variant') if name in row]
  if 'latent' in row:
    names = {'batch': 'B', 'heads': 'N', 'latent': 'L', 'slots': ''}
  parts += [
    f'{short}{row[name]}' for name, short in names.items() if name in row
  ]
  if 'filled' in row:
    parts.append(f'{row["filled"]}/{row["slots"]}')
  parts += [str(row[n]) for n in ('context', 'tokens', 'dtype') if n in row]
  return ' '.join(parts)


def picture(rows: Sequence[Row], read: float) -> tuple[Block, ...]:
  """Returns achieved bandwidth against context, a panel for each batch.

  What the machine reads is drawn in: the roofline of work that only reads.
  """
  parts: dict[str, dict[str, dict[float, float]]] = {}
  found = [r for r in rows if r['record'] == 'attention' and 'ratios' in r]
  for row in sorted(found, key=lambda row: (row['batch'], row['filled'])):
    batch = row['batch']
    series = parts.setdefault(f'{batch} row{"s" * (batch > 1)}', {})
    best = series.setdefault(f'{row["name"]} {row["dtype"]}', {})
    at = row['filled']
    best[at] = max(best.get(at, 0.0), row['bandwidth'] / 1e9)
  if not parts:
    return ()
  png = plots.lines_below(
    'Attention alone',
    parts,
    'filled slots of a row',
    'GB/s',
    limit=('read bandwidth', read / 1e9),
  )
  caption = 'Achieved bandwidth of the best shape; dashed: what a sum reads.'
  return (Picture('bandwidth', png, caption),)


def compare(before: Sequence[Row], after: Sequence[Row]) -> Table:
  """Returns the ratio of times of the rows that both runs have.

  Of a row that a file has twice, the last counts; of a sweep, the best cut.

  Raises:
    ValueError: they have no row in common.
  """
  old = _measured(before)
  pairs = [
    (old[key], row) for key, row in _measured(after).items() if key in old
  ]
  if not pairs:
    raise ValueError('the two runs have no row in common: nothing to compare.')
  return Table(
    'Times of two runs',
    ('what', 'case', 'name', 'before ms', 'after ms', 'after / before'),
    [
      (
        b['record'],
        case(b),
        b['name'],
        round(1e3 * a['seconds'], 3),
        round(1e3 * b['seconds'], 3),
        round(b['seconds'] / a['seconds'], 2),
      )
      for a, b in pairs
    ],
    'Below 1: the second run is faster. Compare shares of the floor where the '
    'machines differ.',
  )


def _measured(records: Sequence[Row]) -> dict[tuple[str, ...], Row]:
  """Returns timed rows by what they measured, the shape of a model included."""
  found, config = {}, {}
  for row in records:
    if row.get('record') == 'run':
      config = row.get('config', {})
    timed = {'record', 'name', 'seconds'} <= row.keys()
    if not timed or (row['record'] == 'sweep' and not row.get('best')):
      continue
    shape: Row = {}
    if 'context' in row or row['record'] == 'overhead':
      name = row.get('model', next(iter(config.get('models', ())), 'model'))
      shape = _SHAPE | config.get(name, {})
      row = {'model': name, 'dtype': shape['dtype'], **row}
    key = *(row.get(x) for x in SETTING), *(shape.get(x) for x in _SHAPE)
    found[tuple(map(str, key))] = row
  return found
