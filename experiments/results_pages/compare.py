"""Trained models read through each cache: bits, bytes and pace."""

import pathlib
import statistics
from collections.abc import Sequence

from experiments.results_pages.markdown import (
  Recording,
  document,
  milliseconds,
  paragraph,
  provenance,
  recordings,
  table,
)


def page(results: pathlib.Path) -> str:
  """Returns docs/results/compare.md."""
  (run,) = recordings(results / 'compare_full.jsonl')
  text = run.run['text']
  training = run.run['config']['training']
  return document(
    'Small models read through each cache',
    paragraph(
      'MHA, GQA, MQA and MLA models of equal size are trained on '
      f'{text["source"]} ({text["bytes"]:,} bytes, '
      f'{text["held_out_bytes"]:,} of them kept for evaluation) in '
      f'{training["steps"]} steps. The training is too short to rank the '
      'attention variants; compare the cells of a row.'
    ),
    provenance(run),
    '## Bits per byte of held-out text',
    paragraph(
      'Bytes that the cache keeps per token, then the median of bits per byte '
      'over the seeds; the first column adds half the range. '
      f'{run.run["config"]["seeds"]} seeds.'
    ),
    quality_table(run),
    '## Seconds a token, cached and uncached',
    _pace(run),
    '## Cached and uncached agree',
    paragraph(_agreement(run)),
  )


def quality_table(run: Recording) -> str:
  """Returns bytes and bits of each variant through each cache."""
  rows = run.select('quality')
  variants: list[str] = list(dict.fromkeys(row['variant'] for row in rows))
  caches: list[str] = list(dict.fromkeys(row['cache'] for row in rows))
  setting = run.run['config']['evaluation']
  budget, sinks = setting['budget'], setting['sinks']
  titles = {
    'ring': f'ring of {budget}',
    'sinks': f'{sinks} sinks and {budget - sinks}',
    'bounded': f'{budget} heavy hitters',
  }
  cells = []
  for variant in variants:
    shown = [variant.upper()]
    for cache in caches:
      group = run.select('quality', variant=variant, cache=cache)
      bits = [row['bits'] for row in group]
      kept = round(group[0]['held_per_token'])
      spread = f' ± {_half_range(bits):.3f}' if cache == caches[0] else ''
      shown.append(f'{kept:,}: {statistics.median(bits):.3f}{spread}')
    cells.append(shown)
  return table(
    ('bytes: bits', *(titles.get(name, name) for name in caches)), cells
  )


def _agreement(run: Recording) -> str:
  """Returns how far logits differ, and what noise on old queries changes."""
  exact = [row for row in run.select('quality') if 'difference' in row]
  apart = max(row['difference'] / row['largest_logit'] for row in exact)
  noise = run.select('separation')
  return (
    f'Cached and uncached logits differ by at most {apart:.1e} of the largest '
    'logit. Noise on every past query of all layers changes the next logits '
    f'by at most {max(row["queries"] for row in noise):g}, and the logits of '
    f'past rows by at least {min(row["past_rows"] for row in noise):.1f}.'
  )


def _half_range(values: Sequence[float]) -> float:
  return (max(values) - min(values)) / 2


def _pace(run: Recording) -> str:
  columns = 'attention', 'tokens', 'cached, ms', 'uncached, ms', 'faster'
  return table(
    columns,
    [
      [
        row['variant'].upper(),
        row['context'],
        milliseconds(row['cached']),
        milliseconds(row['uncached']),
        f'{row["uncached"] / row["cached"]:.1f}x',
      ]
      for row in run.select('pace')
    ],
  )
