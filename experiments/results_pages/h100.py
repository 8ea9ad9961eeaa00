"""The benchmark on a Hopper GPU: attention, steps, tokens, correctness."""

import math
import pathlib
from typing import Any

from experiments.results_pages.markdown import (
  COMMIT_WORDS,
  SPEED_WORDS,
  Record,
  Recording,
  document,
  microseconds,
  milliseconds,
  paragraph,
  provenance,
  recordings,
  relative,
  share,
  table,
)

ATTENTION_PEERS = (
  'torch sdpa', 'torch flash', 'torch cudnn', 'torch efficient', 'torch math',
  'torch flex', 'triton split', 'jax.nn cudnn', 'jax.nn',
)  # fmt: skip
MODEL_PEERS = 'transformers compiled', 'transformers static'
MODELS = {'small': '1B-shaped', 'model': '8B-shaped'}


def page(results: pathlib.Path) -> str:
  """Returns docs/results/h100.md."""
  (run,) = recordings(results / 'benchmark_gpu_h100.jsonl')
  (limits,) = run.select('bandwidth')
  return document(
    'Results on an H100',
    paragraph(
      f'{SPEED_WORDS} {COMMIT_WORDS} `make bench-gpu` runs this benchmark. '
      'The budget of this run ended it before the steps of the 8B-shaped '
      'model with transformers, the steps of 8 rows and the prefills. These '
      'have not run on a GPU, nor has a candidate of the benchmark (a merge in '
      'the same launch, a prompt by cuDNN); no H200 has run anything.'
    ),
    provenance(run),
    paragraph(
      f'The card read {limits["read"] / 1e12:.2f} TB/s and copied '
      f'{limits["copy"] / 1e12:.2f} TB/s. Goals are set for an H200 and scaled '
      'by what this card copies.'
    ),
    *_alone(run),
    '## Steps and tokens of whole models',
    paragraph(
      'Random weights of the shapes of a 1B and an 8B model, bfloat16. Of the '
      'rows of `generate`, those named `steps` are left out: they decoded '
      'their last tokens past the capacity.'
    ),
    _models(run),
    *_details(run),
  )


def _alone(run: Recording) -> tuple[str, ...]:
  return (
    '## Attention alone',
    paragraph(
      f'{_shape(run)}, one layer, cold: buffers rotate past the second-level '
      'cache. Every slot is filled.'
    ),
    _attention(run),
    '### The peers',
    paragraph(
      'How `mosaic_gpu` compares with each; the kernel `blockwise` is in the '
      'table above.'
    ),
    _peers(run),
    '### Growth with the number of slots',
    paragraph('The slope of log time over log slots for `mosaic_gpu`.'),
    _growth(run),
  )


def _details(run: Recording) -> tuple[str, ...]:
  return (
    '## What the kernel computes',
    paragraph(
      'Largest differences from float64: outputs of `mosaic_gpu`, outputs of '
      '`blockwise`, and log-sum-exp of `mosaic_gpu`. Rows hold '
      f'{_lengths(run)} tokens; every slot without a token holds NaN.'
    ),
    _correctness(run),
    '## The fastest tiles',
    paragraph(
      'Of the tiles that were tried for each problem, the fastest one.'
    ),
    _tiles(run),
  )


def _shape(run: Recording) -> str:
  row = run.select('attention')[0]
  return (
    f'{row["dtype"]}, {row["heads"]} kv heads, G = {row["groups"]}, '
    f'H = {row["width"]}'
  )


def _attention(run: Recording) -> str:
  names = 'kvjax mosaic_gpu', 'kvjax blockwise'
  rows = [row for row in run.select('attention') if row['name'] in names]
  columns = (
    'rows x slots',
    'kernel',
    'us',
    'TB/s',
    'of the floor',
    'goal',
    'goal met',
  )
  return table(
    columns,
    [
      [
        _size(row),
        f'`{row["kernel"]}`',
        microseconds(row['seconds']),
        f'{row["bandwidth"] / 1e12:.2f}',
        share(row['of_floor']),
        *_goal(row),
      ]
      for row in rows
    ],
  )


def _peers(run: Recording) -> str:
  rows = run.select('attention', name='kvjax mosaic_gpu')
  return table(
    ('rows x slots', *ATTENTION_PEERS),
    [
      [
        _size(row),
        *(relative(row['ratios'].get(name)) for name in ATTENTION_PEERS),
      ]
      for row in rows
    ],
  )


def _growth(run: Recording) -> str:
  by_batch: dict[int, list[Record]] = {}
  for row in run.select('attention', name='kvjax mosaic_gpu'):
    by_batch.setdefault(row['batch'], []).append(row)
  cells = []
  for batch, rows in by_batch.items():
    ordered = sorted(rows, key=lambda row: row['filled'])
    for before, after in zip(ordered, ordered[1:], strict=False):
      slope = math.log(after['seconds'] / before['seconds']) / math.log(
        after['filled'] / before['filled']
      )
      cells.append([batch, before['filled'], after['filled'], share(slope)])
  return table(('rows', 'from slots', 'to slots', 'exponent'), cells)


def _models(run: Recording) -> str:
  rows = [
    row
    for row in run.select('step') + run.select('generate')
    if not row['name'].endswith(' steps')
  ]
  columns = (
    'model', 'rows x tokens', 'what', 'ms a token', 'of the floor', 'goal',
    'goal met',
    *MODEL_PEERS,
  )  # fmt: skip
  return table(
    columns,
    [
      [
        MODELS[row['model']],
        f'{row["batch"]} x {row["context"]:,}',
        row['name'],
        milliseconds(row['seconds'] / row.get('tokens', 1)),
        f'{row["of_floor"]:.3f}',
        *_goal(row),
        *(_against(row, name) for name in MODEL_PEERS),
      ]
      for row in rows
    ],
  )


def _against(row: Record, peer: str) -> str:
  ours = row['name'].startswith('kvjax')
  return relative(row['ratios'].get(peer)) if ours else ''


def _goal(row: Record) -> tuple[str, str]:
  """Returns the goal of a row and whether it was met; empty without one."""
  if 'bar' not in row:
    return '', ''
  goal = row['bar']
  if goal['field'] == 'bandwidth':
    text = f'at least {goal["value"] / 1e12:.2f} TB/s'
  elif goal['field'] == 'seconds':
    text = f'at most {microseconds(goal["value"])} us'
  else:
    text = f'at least {goal["value"]:.2f} of the floor'
  return text, 'yes' if goal['met'] else 'no'


def _lengths(run: Recording) -> str:
  (lengths,) = {tuple(row['lengths']) for row in run.select('correctness')}
  return ', '.join(f'{length:,}' for length in lengths)


def _correctness(run: Recording) -> str:
  columns = (
    'G', 'tokens', 'H', 'E', 'dtype', 'mask', 'soft-cap', 'error',
    'error of `blockwise`', 'log-sum-exp', 'tolerance', 'result',
  )  # fmt: skip
  return table(
    columns,
    [
      [
        row['groups'],
        row['tokens'],
        row['width'],
        row['value_width'],
        row['dtype'],
        _rule(row['rule']),
        '' if row['softcap'] is None else row['softcap'],
        *(
          f'{row[name]:.1e}'
          for name in ('error', 'error_blockwise', 'lse_error', 'tolerance')
        ),
        'passed' if row['passed'] else 'failed',
      ]
      for row in run.select('correctness')
    ],
  )


def _rule(rule: dict[str, Any]) -> str:
  return ', '.join(f'{name} {value}' for name, value in rule.items())


def _tiles(run: Recording) -> str:
  return table(
    ('rows x slots', 'block', 'stages', 'splits', 'us'),
    [
      [
        _size(row),
        row['block'],
        row['stages'],
        row['splits'],
        microseconds(row['seconds']),
      ]
      for row in run.select('sweep', best=True)
    ],
  )


def _size(row: Record) -> str:
  return f'{row["batch"]} x {row["filled"]:,}'
