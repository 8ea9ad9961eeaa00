"""From the records of `experiments/compare.py` to tables and pictures.

Every block is made from records alone, so a report can be made again from its
JSON lines. A number from several seeds is shown as median and half range.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kvjax.report import plots
from kvjax.report.blocks import Block, Code, Heading, Picture, Table, Text

Records = Sequence[dict[str, Any]]


def everything(records: Records, expected_bits: float) -> tuple[Block, ...]:
  """Returns all that records say, what would have refuted it last."""
  return (
      *models(records),
      *parity(records),
      *separation(records),
      *memory(records),
      *quality(records),
      *pace(records),
      *samples(records),
      Heading('Claims'),
      claims(records, expected_bits),
  )


def models(records: Records) -> tuple[Block, ...]:
  """Returns what was trained, and what was changed to make it equal."""
  rows = [
      [r['variant'], r['parameters'], f'{r["apart"]:+.2%}', r['hidden']]
      for r in records
      if r['record'] == 'model'
  ]
  return (
      Heading('Four models of equal size'),
      Table(
          'Parameters',
          ('variant', 'parameters', 'against MHA', 'MLP hidden'),
          rows,
          note='Smaller key and value projections buy a wider MLP: only its '
          'hidden width was changed to equalise them.',
      ),
  )


def quality(records: Records) -> tuple[Block, ...]:
  """Returns bits per byte through each cache beside its bytes."""
  found = [r for r in records if r['record'] == 'quality']
  seeds = len({r['seed'] for r in found})
  rows = []
  points: dict[str, dict[str, tuple[float, float, float]]] = {}
  for (variant, cache), group in _grouped(found, 'variant', 'cache').items():
    bits, spread = _median([r['bits'] for r in group])
    worse, _ = _median([r['bits'] - r['uncached_bits'] for r in group])
    held, context = group[0]['held_per_token'], group[0]['context']
    rows.append([variant, cache, f'{held:,.0f}', _spread(bits, spread, seeds),
                 f'{worse:+.4f}'])
    points.setdefault(variant, {})[cache] = (held, bits, spread)
  label = (
      'One seed: **not a ranking of variants.** '
      if seeds == 1
      else f'Median of {seeds} seeds, plus or minus half their range. '
  )
  what = (
      f'held-out bits per byte, one byte at a time through the cache; bytes '
      f'held per token of a context of {context}.'
  )
  return (
      Heading('What forgetting costs'),
      Table(
          'Held-out text, read through each cache',
          ('variant', 'cache', 'bytes per token', 'bits per byte',
           'against uncached'),
          rows,
          note=label + what.capitalize(),
      ),
      Picture(
          'quality',
          plots.scatter(
              'Prediction against memory'
              + (' (one seed: not a ranking)' if seeds == 1 else ''),
              points,
              f'bytes held per token of context ({context} tokens)',
              'held-out bits per byte',
          ),
          label + 'Lower and further left is better.',
      ),
  )


def memory(records: Records) -> tuple[Block, ...]:
  """Returns bytes promised, allocated, and what a Q cache would have held."""
  found = [
      r for r in records if r['record'] == 'quality' and r['cache'] == 'dense'
  ]
  firsts = {v: g[0] for (v,), g in _grouped(found, 'variant').items()}
  rows = [
      [v, r['bytes_per_token'], r['predicted_bytes'], r['allocated_bytes'],
       r['query_bytes'], f'{r["query_bytes"] / r["allocated_bytes"]:.2f} x']
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
          ('variant', 'bytes per token', 'promised', 'allocated',
           'a Q cache', 'of the cache'),
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


def separation(records: Records) -> tuple[Block, ...]:
  """Returns what noise on the past did to the next logits."""
  rows = [
      [r['variant'], r['queries'], r['past_rows'],
       f'{r["kept_changed"]} of {r["kept_rows"]}', r['kept_least'],
       r['kept_most'], r['naive']]
      for r in records
      if r['record'] == 'separation'
  ]
  return (
      Heading('No step reads a past query'),
      Text(
          'At a token boundary of the trained models, the past is replaced by '
          'noise, one part at a time, in an uncached program that computes '
          '*every* row. Past queries of **all** layers, once K and V of all '
          'layers are kept: the next logits are the same bit for bit, though '
          'the logits of the past rows (which nobody asks for again) change. '
          'Noise on any single kept row of any stream changes them. The naive '
          'corruption replaces q of the first layer *before* K and V of the '
          'layer above exist: that q does reach the future, through the K and V '
          'that are made from its rows and kept. "Never" is a statement about '
          'a cut, not about influence.'
      ),
      Table(
          'Largest change of the next logits',
          ('variant', 'all past q', '(past rows)', 'kept rows that matter',
           'least', 'most', 'naive: early q'),
          rows,
      ),
  )


def parity(records: Records) -> tuple[Block, ...]:
  """Returns the largest difference of cached and uncached logits."""
  found = [r for r in records if 'difference' in r]
  rows = []
  for (variant,), group in _grouped(found, 'variant').items():
    worst = max(group, key=lambda r: r['difference'])
    rows.append([variant, worst['difference'], worst['largest_logit'],
                 worst['difference'] / worst['largest_logit']])
  return (
      Heading('Cached equals uncached'),
      Table(
          'Logits on held-out text, one token at a time and all at once',
          ('variant', 'largest difference', 'largest logit', 'relative'),
          rows,
      ),
  )


def pace(records: Records) -> tuple[Block, ...]:
  """Returns time a token against context, cached and uncached."""
  found = [r for r in records if r['record'] == 'pace']
  rows = [
      [r['variant'], r['context'], 1 / r['cached'], 1 / r['uncached'],
       f'{r["uncached"] / r["cached"]:.0f} x']
      for r in found
  ]
  series = {}
  for name in ('cached', 'uncached'):
    for (variant,), group in _grouped(found, 'variant').items():
      series[f'{variant} {name}'] = {
          r['context']: 1e3 * r[name] for r in group
      }
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


def samples(records: Records) -> tuple[Block, ...]:
  """Returns what each model wrote."""
  blocks: list[Block] = [Heading('What the models write')]
  for r in records:
    if r['record'] == 'sample':
      blocks += [Text(f'{r["variant"]}:'), Code(r['text'], r['prompt'])]
  return tuple(blocks)


def attention(
    variant: str, panels: Mapping[str, np.ndarray], labels: Sequence[str]
) -> tuple[Block, ...]:
  """Returns where the heads of a model look."""
  title = f'Attention of the {variant} model on held-out text'
  caption = (
      'Row: the byte just read, whose query asks. Column: the bytes whose keys '
      'and values answer. A row is computed once and never again: its query '
      'dies with it. (Colour: square root of the weight.)'
  )
  return (
      Heading('Where the heads look'),
      Picture('attention', plots.heat(title, panels, labels), caption),
  )


def claims(records: Records, expected_bits: float) -> Table:
  """Returns what would refute the experiment, and whether it did."""
  quality_ = [r for r in records if r['record'] == 'quality']
  noise = [r for r in records if r['record'] == 'separation']
  bits = max(r['uncached_bits'] for r in quality_)
  checks = {
      'cached logits equal uncached ones': any(
          'difference' in r for r in quality_
      ),
      'bytes allocated are the bytes promised': all(
          r['predicted_bytes'] == r['allocated_bytes'] for r in quality_
      ),
      'noise on every past q changes no bit': all(
          r['queries'] == 0 and r['past_rows'] > 0 for r in noise
      ),
      'noise on any kept row changes the logits': all(
          r['kept_changed'] == r['kept_rows'] for r in noise
      ),
      'early q reaches the future through K and V': all(
          r['naive'] > 0 for r in noise
      ),
      f'held-out text below {expected_bits} bits per byte (worst {bits:.2f})':
          bits < expected_bits,
  }
  return Table(
      'What would have refuted this', ('claim', 'holds'), list(checks.items())
  )


def _grouped(records: Records, *keys: str) -> dict[tuple[Any, ...], Records]:
  groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
  for record in records:
    groups.setdefault(tuple(record[k] for k in keys), []).append(record)
  return dict(groups)


def _median(values: Sequence[float]) -> tuple[float, float]:
  return float(np.median(values)), float(np.ptp(values)) / 2


def _spread(value: float, spread: float, seeds: int) -> str:
  return f'{value:.4f}' + (f' ± {spread:.4f}' if seeds > 1 else '')
