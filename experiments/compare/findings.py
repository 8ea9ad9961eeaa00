"""From the records of `experiments/compare/__main__.py` to tables and pictures.

Every block is made from records alone, so a report can be made again from its
JSON lines. A number from several seeds is shown as median and half range.
"""

import statistics
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from experiments.reporting import plots
from experiments.reporting.blocks import (
  Block,
  Code,
  Heading,
  Picture,
  Table,
  Text,
  cell,
)
from experiments.reporting.groups import (
  grouped,
  median_and_spread,
  of_kind,
  with_spread,
)

Records = Sequence[Mapping[str, Any]]
_VARIANT = itemgetter('variant')


def everything(records: Records) -> tuple[Block, ...]:
  """Returns all that records say."""
  parts = (models, parity, separation, memory, quality, pace, samples)
  return tuple(block for part in parts for block in part(records))


def source(text: Mapping[str, Any], seeds: Sequence[int]) -> Text:
  """Returns what was read, and with which seeds."""
  return Text(
    f'Text: {text["source"]}, {text["bytes"]:,} bytes, of which '
    f'{text["held_out_bytes"]:,} are held out. Seeds: '
    f'{", ".join(map(str, seeds))}.'
  )


def models(records: Records) -> tuple[Block, ...]:
  """Returns what was trained, and what was changed to make it equal."""
  trained = of_kind(records, 'model')
  count = len(trained)
  return (
    Heading(f'{count} models of equal size' if count > 1 else 'One model'),
    Table.of(
      'Parameters',
      {
        'variant': 'variant',
        'parameters': 'parameters',
        f'against {trained[0]["variant"]}': lambda r: f'{r["apart"]:+.2%}',
        'MLP hidden': 'hidden',
      },
      trained,
      note='Smaller key and value projections buy a wider MLP: only its '
      'hidden width was changed to equalise them.',
    ),
  )


def separation(records: Records) -> tuple[Block, ...]:
  """Returns what noise on the past did to the next logits."""
  return (
    Heading('No step reads a past query'),
    Text(
      'At a token boundary of the trained models, the past is replaced by '
      'noise, one part at a time, in an uncached program that computes '
      '*every* row. Past queries of **all** layers, once K and V of all '
      'layers are kept: the next logits are the same bit for bit, though the '
      'logits of the past rows (which no later step needs) change. Noise on '
      'any single kept row of any stream changes the next logits; a faint row '
      'has so little weight that only louder noise shows in float32. The naive '
      'corruption replaces q of the first layer *before* K and V of the '
      'layer above exist: that q does reach the future, through the K and V '
      'that are made from its rows and kept. "Never" is a statement about '
      'a cut, not about influence.'
    ),
    Table.of(
      'Largest change of the next logits',
      {
        'variant': 'variant',
        'seed': 'seed',
        'all past q': 'queries',
        '(past rows)': 'past_rows',
        'kept rows that matter': lambda r: (
          f'{r["kept_changed"]} of {r["kept_rows"]}'
        ),
        'faint': 'kept_faint',
        'least': 'kept_least',
        'most': 'kept_most',
        'naive: early q': 'naive',
      },
      of_kind(records, 'separation'),
    ),
  )


def parity(records: Records) -> tuple[Block, ...]:
  """Returns the largest difference of cached and uncached logits."""
  compared = [r for r in records if 'difference' in r]
  groups = grouped(compared, _VARIANT).values()
  return (
    Heading('Cached equals uncached'),
    Table.of(
      'Logits on held-out text, one token at a time and all at once',
      {
        'variant': 'variant',
        'largest difference': 'difference',
        'largest logit': 'largest_logit',
        'relative': lambda r: r['difference'] / r['largest_logit'],
      },
      [max(group, key=itemgetter('difference')) for group in groups],
    ),
  )


def memory(records: Records) -> tuple[Block, ...]:
  """Returns bytes promised, allocated, and what a Q cache would add."""
  dense = [r for r in of_kind(records, 'quality') if r['cache'] == 'dense']
  firsts = [group[0] for group in grouped(dense, _VARIANT).values()]
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
  if seeds > 1:
    label = f'Median of {seeds} seeds, plus or minus half their range. '
  else:
    label = 'One seed: **not a ranking of variants.** '
  rows = []
  points: dict[str, dict[str, tuple[float, float, float]]] = {}
  groups = grouped(figures, itemgetter('variant', 'cache'))
  for (variant, cache), group in groups.items():
    size = group[0]['held_per_token']
    bits, spread = median_and_spread([r['bits'] for r in group])
    worse = statistics.median(r['bits'] - r['uncached_bits'] for r in group)
    shown = with_spread(bits, spread) if spread else f'{bits:.4f}'
    rows.append([variant, cache, f'{size:,.0f}', shown, f'{worse:+.4f}'])
    points.setdefault(variant, {})[cache] = (size, bits, spread)
  return (
    Heading('What forgetting costs'),
    Table(
      'Held-out text, read through each cache one byte at a time',
      ('variant', 'cache', 'bytes', 'bits per byte', 'against uncached'),
      rows,
      note=f'{label}Bytes are per token of a context of {context}.',
    ),
    Picture(
      'quality',
      plots.scatter(
        'Prediction against memory',
        points,
        f'bytes held per token of context ({context} tokens)',
        'held-out bits per byte',
      ),
      f'{label}Lower and further left is better. Points that would cover '
      'each other stand side by side.',
    ),
  )


def pace(records: Records) -> tuple[Block, ...]:
  """Returns time a token against context, cached and uncached."""
  times = of_kind(records, 'pace')
  series = {
    f'{variant} {name}': {r['context']: 1e3 * r[name] for r in group}
    for name in ('cached', 'uncached')
    for variant, group in grouped(times, _VARIANT).items()
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
        'faster': lambda r: f'{cell(r["uncached"] / r["cached"])} x',
      },
      times,
      note='Cached: steps of one fixed token after random streams, without '
      'sampling. Uncached: a forward pass of the whole context.',
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
      'Filled markers: cached. Hollow markers, dashed: without a cache, where '
      'the whole context is computed again for every token.',
    ),
  )


def samples(records: Records) -> tuple[Block, ...]:
  """Returns what each model wrote."""
  blocks: list[Block] = [Heading('What the models write')]
  for r in of_kind(records, 'sample'):
    blocks += [Text(f'{r["variant"]}:'), Code(r['text'], r['prompt'])]
  return tuple(blocks)


def attention(variant: str, panels, labels) -> tuple[Block, ...]:
  """Returns where the heads of a model look; panels and labels of `heat`."""
  title = f'Attention of the {variant} model on held-out text'
  png = plots.heat(title, panels, labels, 'after reading ...', '... weight on')
  caption = (
    'Row: the byte just read, whose query is compared with keys. Column: the '
    'bytes of these keys and their values. A row is computed once and never '
    'again: no later row reads its query. (Colour: square root of the weight.)'
  )
  return (
    Heading('Where the heads look'),
    Picture('attention', png, caption),
  )


def claims(records: Records, expected_bits: float) -> Table:
  """Returns what would refute the experiment, and whether it did."""
  figures = of_kind(records, 'quality')
  noise = of_kind(records, 'separation')
  bits = max(r['uncached_bits'] for r in figures)
  compared = any('difference' in r for r in figures)
  as_promised = lambda r: r['predicted_bytes'] == r['allocated_bytes']
  no_query = lambda r: r['queries'] == 0 and r['past_rows'] > 0
  any_kept = lambda r: r['kept_changed'] == r['kept_rows']
  early = lambda r: r['naive'] > 0
  level = f'below {expected_bits} bits per byte (worst {bits:.2f})'
  checks = [
    ('cached logits equal uncached ones', compared),
    ('bytes allocated are the bytes promised', all(map(as_promised, figures))),
    ('noise on every past q changes no bit', all(map(no_query, noise))),
    ('noise on any kept row changes the logits', all(map(any_kept, noise))),
    ('early q reaches the future through K and V', all(map(early, noise))),
    (f'held-out text {level}', bits < expected_bits),
  ]
  return Table('What would have refuted this', ('claim', 'holds'), checks)
