"""What caches cost, from records: bytes, bits per byte, seconds a token.

A number from several seeds is shown as median and half range.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reporting import plots
from experiments.reporting.blocks import Block, Heading, Picture, Table

Records = Sequence[dict[str, Any]]


_MEMORY_COLUMNS = (
  'variant',
  'bytes per token',
  'promised',
  'allocated',
  'a Q cache',
  'of the cache',
)


def memory(records: Records) -> tuple[Block, ...]:
  """Returns bytes promised, allocated, and what a Q cache would have held."""
  found = [
    r for r in records if r['record'] == 'quality' and r['cache'] == 'dense'
  ]
  firsts = {v: g[0] for (v,), g in grouped(found, 'variant').items()}
  rows = [
    [
      v,
      r['bytes_per_token'],
      r['predicted_bytes'],
      r['allocated_bytes'],
      r['query_bytes'],
      f'{r["query_bytes"] / r["allocated_bytes"]:.2f} x',
    ]
    for v, r in firsts.items()
  ]
  bars = {
    v: (
      r['bytes_per_token'],
      r['bytes_per_token'] * r['query_bytes'] / r['allocated_bytes'],
    )
    for v, r in firsts.items()
  }
  return (
    Heading('Bytes: promised, allocated, and not needed'),
    Table(
      'The dense cache of these models',
      _MEMORY_COLUMNS,
      rows,
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
  """Returns bits per byte through each cache beside its bytes."""
  found = [r for r in records if r['record'] == 'quality']
  seeds = len({r['seed'] for r in found})
  context = found[0]['context']
  label = 'One seed: **not a ranking of variants.** '
  if seeds > 1:
    label = f'Median of {seeds} seeds, plus or minus half their range. '
  rows = []
  points: dict[str, dict[str, tuple[float, float, float]]] = {}
  for (variant, cache), group in grouped(found, 'variant', 'cache').items():
    bits, spread = _median([r['bits'] for r in group])
    worse, _ = _median([r['bits'] - r['uncached_bits'] for r in group])
    held = group[0]['held_per_token']
    bound = f'{bits:.4f}' + (f' ± {spread:.4f}' if seeds > 1 else '')
    rows.append([variant, cache, f'{held:,.0f}', bound, f'{worse:+.4f}'])
    points.setdefault(variant, {})[cache] = (held, bits, spread)
  return (
    Heading('What forgetting costs'),
    Table(
      'Held-out text, read through each cache one byte at a time',
      ('variant', 'cache', 'bytes', 'bits per byte', 'against uncached'),
      rows,
      note=f'{label}Bytes are held per token of a context of {context}.',
    ),
    _prediction_against_memory(points, context, label),
  )


def _prediction_against_memory(points, context, label):
  picture = plots.scatter(
    'Prediction against memory',
    points,
    f'bytes held per token of context ({context} tokens)',
    'held-out bits per byte',
  )
  return Picture(
    'quality', picture, f'{label}Lower and further left is better.'
  )


def pace(records: Records) -> tuple[Block, ...]:
  """Returns time a token against context, cached and uncached."""
  found = [r for r in records if r['record'] == 'pace']
  rows = [
    [
      r['variant'],
      r['context'],
      1 / r['cached'],
      1 / r['uncached'],
      f'{r["uncached"] / r["cached"]:.0f} x',
    ]
    for r in found
  ]
  series = {}
  for name in ('cached', 'uncached'):
    for (variant,), group in grouped(found, 'variant').items():
      series[f'{variant} {name}'] = {r['context']: 1e3 * r[name] for r in group}
  return (
    Heading('What remembering saves'),
    Table(
      'Tokens per second, one row',
      ('variant', 'context', 'cached', 'uncached', 'faster'),
      rows,
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


def grouped(records: Records, *keys: str) -> dict[tuple[Any, ...], Records]:
  """Returns records by their values of some fields, in order."""
  groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
  for record in records:
    groups.setdefault(tuple(record[k] for k in keys), []).append(record)
  return dict(groups)


def _median(values: Sequence[float]) -> tuple[float, float]:
  return float(np.median(values)), float(np.ptp(values)) / 2
