"""Tables and pictures of a benchmark, and of two held against each other."""

from collections.abc import Sequence
from typing import Any

from kvjax.report import plots
from kvjax.report.blocks import Block, Picture, Table

Row = dict[str, Any]
SETTING = (
  'record', 'batch', 'heads', 'groups', 'width', 'slots', 'filled', 'context',
  'dtype', 'tokens', 'name',
)  # fmt: skip


def table(title: str, rows: Sequence[Row], read: float) -> Table:
  """Returns a row each: time, bandwidth, share of the floor, ratios."""
  peers = list(dict.fromkeys(p for row in rows for p in row['ratios']))
  return Table(
    title,
    ('case', 'what', 'ms', 'least', 'GB/s', 'of floor', *peers),
    [
      (
        case(row),
        row['name'],
        round(1e3 * row['seconds'], 3),
        round(1e3 * row['fastest'], 3),
        round(row['bandwidth'] / 1e9, 1),
        round(row['of_floor'], 2),
        *(
          f'{row["ratios"][p]:.1f}x' if p in row['ratios'] else ''
          for p in peers
        ),
      )
      for row in rows
    ],
    f'Floor: bytes over {read / 1e9:.1f} GB/s, read in the same run. A ratio '
    'above 1 says how many times as long the peer takes.',
  )


def case(row: Row) -> str:
  """Returns a row's setting in short."""
  names = {'batch': 'B', 'heads': 'K', 'groups': 'G', 'width': 'H'}
  parts = [
    f'{short}{row[name]}' for name, short in names.items() if name in row
  ]
  if 'filled' in row:
    parts.append(f'{row["filled"]}/{row["slots"]}')
  parts += [str(row[n]) for n in ('context', 'tokens', 'dtype') if n in row]
  return ' '.join(parts)


def picture(rows: Sequence[Row], read: float) -> tuple[Block, ...]:
  """Returns achieved bandwidth against what is read, the roofline drawn in."""
  series: dict[str, dict[float, float]] = {}
  for row in rows:
    if row['record'] == 'attention':
      name = f'{row["name"]} {row["dtype"]}'
      at = row['batch'] * row['filled']
      best = series.setdefault(name, {})
      best[at] = max(best.get(at, 0.0), row['bandwidth'] / 1e9)
  if not series:
    return ()
  series = {n: dict(sorted(points.items())) for n, points in series.items()}
  ends = {at: read / 1e9 for points in series.values() for at in points}
  series['read bandwidth'] = dict(sorted(ends.items()))
  png = plots.lines(
    'Attention alone',
    series,
    'filled slots of all rows',
    'GB/s',
    dashed=('read bandwidth',),
  )
  caption = 'Achieved bandwidth of the best shape; dashed: what a sum reads.'
  return (Picture('bandwidth', png, caption),)


def compare(before: Sequence[Row], after: Sequence[Row]) -> Table:
  """Returns the ratio of times of the rows that both runs have.

  Raises:
    ValueError: they have no row in common.
  """
  key = lambda row: tuple(str(row.get(name)) for name in SETTING)
  old = {key(row): row for row in before if 'seconds' in row}
  pairs = [
    (old[key(row)], row)
    for row in after
    if 'seconds' in row and key(row) in old
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
