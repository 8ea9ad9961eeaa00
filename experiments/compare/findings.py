"""From the records of `experiments/compare/__main__.py` to tables and pictures.

Every block is made from records alone, so a report can be made again from its
JSON lines. A number from several seeds is shown as median and half range.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.compare import costs
from experiments.compare.costs import Records, grouped, of_kind
from experiments.reporting import plots
from experiments.reporting.blocks import (
  Block,
  Code,
  Heading,
  Picture,
  Table,
  Text,
)


def everything(records: Records) -> tuple[Block, ...]:
  """Returns all that records say."""
  return (
    *models(records),
    *parity(records),
    *separation(records),
    *costs.memory(records),
    *costs.quality(records),
    *costs.pace(records),
    *samples(records),
  )


def source(text: Mapping[str, Any], seeds: Sequence[int]) -> Text:
  """Returns what was read, and with which seeds."""
  return Text(
    f'Text: {text["source"]}, {text["bytes"]:,} bytes, of which '
    f'{text["held_out_bytes"]:,} are held out. Seeds: '
    f'{", ".join(map(str, seeds))}.'
  )


def models(records: Records) -> tuple[Block, ...]:
  """Returns what was trained, and what was changed to make it equal."""
  return (
    Heading('Four models of equal size'),
    Table.of(
      'Parameters',
      {
        'variant': 'variant',
        'parameters': 'parameters',
        'against MHA': lambda r: f'{r["apart"]:+.2%}',
        'MLP hidden': 'hidden',
      },
      of_kind(records, 'model'),
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
  groups = grouped([r for r in records if 'difference' in r], 'variant')
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
      [max(group, key=lambda r: r['difference']) for group in groups.values()],
    ),
  )


def samples(records: Records) -> tuple[Block, ...]:
  """Returns what each model wrote."""
  blocks: list[Block] = [Heading('What the models write')]
  for r in of_kind(records, 'sample'):
    blocks += [Text(f'{r["variant"]}:'), Code(r['text'], r['prompt'])]
  return tuple(blocks)


def attention(
  variant: str, panels: Mapping[str, np.ndarray], labels: Sequence[str]
) -> tuple[Block, ...]:
  """Returns where the heads of a model look."""
  title = f'Attention of the {variant} model on held-out text'
  caption = (
    'Row: the byte just read, whose query is compared with keys. Column: the '
    'bytes of these keys and their values. A row is computed once and never '
    'again: no later row reads its query. (Colour: square root of the weight.)'
  )
  return (
    Heading('Where the heads look'),
    Picture('attention', plots.heat(title, panels, labels), caption),
  )


def claims(records: Records, expected_bits: float) -> Table:
  """Returns what would refute the experiment, and whether it did."""
  figures = of_kind(records, 'quality')
  noise = of_kind(records, 'separation')
  bits = max(r['uncached_bits'] for r in figures)
  level = (
    f'held-out text below {expected_bits} bits per byte (worst {bits:.2f})'
  )
  checks = {
    'cached logits equal uncached ones': any(
      'difference' in r for r in figures
    ),
    'bytes allocated are the bytes promised': all(
      r['predicted_bytes'] == r['allocated_bytes'] for r in figures
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
    level: bits < expected_bits,
  }
  return Table(
    'What would have refuted this', ('claim', 'holds'), list(checks.items())
  )
