"""What caches cost, from records: bytes, bits per byte, seconds a token.

A number from several seeds is shown as median and half range.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Heading, Picture, Table

Records = Sequence[dict[str, Any]]


def memory(records: Records) -> tuple[Block, ...]:
  """Returns bytes promised, allocated, and what a Q cache would add."""
  dense = [r for r in of_kind(records, 'quality') if r['cache'] == 'dense']
  firsts = [group[0] for group in grouped(dense, 'variant').values()]
  ratio = lambda r: r['query_bytes'] / r['allocated_bytes']
  bars = {
    r['variant']: (r['bytes_per_token'], r['bytes_per_token'] * ratio(r))
    for r in firsts
  }
  return (
    Heading('Bytes: promised, allocated, and not needed'),
    Table.of(
      'The dense cache of these models',
      {
        'variant': 'variant',
        'bytes per token': 'bytes_per_token',
        'promised': 'predicted_bytes',
        'allocated': 'allocated_bytes',
        'a Q cache': 'query_bytes',
        'of the cache': lambda r: f'{ratio(r):.2f} x',
      },
      firsts,
      note='Promised from the config alone; allocated by `init_cache`; a Q '
      'cache of the same rows and length, which nothing would read.',
    ),
    Picture(
      'bytes',
      plots.bars('Bytes per token', bars, 'bytes per token, all layers'),
      'What a token leaves behind, and what a Q cache would add.',
    ),
  )


def quality(records: Records) -> tuple[Block, ...]:
  """Returns bits per byte through each cache, and the bytes of that cache."""
  figures = of_kind(records, 'quality')
  seeds = len({r['seed'] for r in figures})
  context = figures[0]['context']
  label = 'One seed: **not a ranking of variants.** '
  if seeds > 1:
    label = f'Median of {seeds} seeds, plus or minus half their range. '
  rows = []
  points: dict[str, dict[str, tuple[float, float, float]]] = {}
  for (variant, cache), group in grouped(figures, 'variant', 'cache').items():
    bits = [r['bits'] for r in group]
    median, spread = float(np.median(bits)), float(np.ptp(bits)) / 2
    worse = np.median([r['bits'] - r['uncached_bits'] for r in group])
    size = group[0]['held_per_token']
    shown = f'{median:.4f}' + (f' ± {spread:.4f}' if seeds > 1 else '')
    rows.append([variant, cache, f'{size:,.0f}', shown, f'{worse:+.4f}'])
    points.setdefault(variant, {})[cache] = (size, median, spread)
  return (
    Heading('What forgetting costs'),
    Table(
      'Held-out text, read through each cache one byte at a time',
      ('variant', 'cache', 'bytes', 'bits per byte', 'against uncached'),
      rows,
      note=f'{label}Bytes are held per token of a context of {context}.',
    ),
    Picture(
      'quality',
      plots.scatter(
        'Prediction against memory',
        points,
        f'bytes held per token of context ({context} tokens)',
        'held-out bits per byte',
      ),
      f'{label}Lower and further left is better.',
    ),
  )


def pace(records: Records) -> tuple[Block, ...]:
  """Returns time a token against context, cached and uncached."""
  times = of_kind(records, 'pace')
  series = {
    f'{variant} {name}': {r['context']: 1e3 * r[name] for r in group}
    for name in ('cached', 'uncached')
    for (variant,), group in grouped(times, 'variant').items()
  }
  return (
    Heading('What remembering saves'),
    Table.of(
      'Tokens per second, one row',
      {
        'variant': 'variant',
        'context': 'context',
        'cached': lambda r: 1 / r['cached'],
        'uncached': lambda r: 1 / r['uncached'],
        'faster': lambda r: f'{r["uncached"] / r["cached"]:.0f} x',
      },
      times,
    ),
    Picture(
      'pace',
      plots.lines(
        'Time a token',
        series,
        'context (tokens)',
        'milliseconds a token',
        dashed=[name for name in series if name.endswith(' uncached')],
      ),
      'Without a cache the whole context is computed again for every token.',
    ),
  )


def of_kind(records: Records, kind: str) -> Records:
  """Returns the records whose `record` is `kind`."""
  return [r for r in records if r['record'] == kind]


def grouped(records: Records, *keys: str) -> dict[tuple[Any, ...], Records]:
  """Returns records by their values of some fields, in order."""
  groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
  for record in records:
    groups.setdefault(tuple(record[k] for k in keys), []).append(record)
  return dict(groups)
