"""How the least time of a step grows: on paper for cards, and timed here."""

import pathlib

from experiments.results_pages.markdown import (
  Record,
  Recording,
  document,
  milliseconds,
  paragraph,
  provenance,
  recordings,
  share,
  table,
)

AXES = {
  'context': 'tokens of a row',
  'batch': 'rows',
  'heads': 'kv heads',
  'layers': 'layers',
}


def page(results: pathlib.Path) -> str:
  """Returns docs/results/scaling.md."""
  (run,) = recordings(results / 'scaling_cpu.jsonl')
  return document(
    'How the time of a step grows',
    paragraph(
      'The first three tables are arithmetic of `kvjax.memory.roofline` and '
      '`kvjax.memory.intensity`, explained in [scaling](../scaling.md); no '
      'card ran. The last one was timed.'
    ),
    provenance(run),
    '## Operations a byte of attention',
    paragraph(
      'Of one layer. The last column says how many new tokens a row could '
      f'have on an {run.run["device"]} before attention waits for arithmetic.'
    ),
    _intensities(run),
    f'## Least steps on {run.run["device"]}',
    paragraph(
      'Weights, cache and attention in ms: the time is the longer of cache and '
      'attention plus the longer of weights and their arithmetic. All is '
      'spread evenly and nothing is communicated; the cache is bfloat16.'
    ),
    _predictions(run),
    '## The bound compared with published step times',
    _published(run),
    '## Timed on this CPU',
    paragraph(
      'Attention alone of 8 kv heads, G = 4, H = 128, one row of 2,048 tokens, '
      'apart from what grows; "layers" is a step of layers of the model of '
      '107M parameters, one row of 512 tokens. The exponent is the slope of '
      'log time over log size.'
    ),
    _growth(run),
  )


def _intensities(run: Recording) -> str:
  return table(
    ('attention of', 'elements a token', 'bfloat16', 'int8', 'tokens'),
    [
      [
        row['name'],
        row['elements'],
        f'{row["bfloat16"]:.1f}',
        f'{row["int8"]:.1f}',
        f'{row["tokens"]:.2f}',
      ]
      for row in run.select('intensity')
    ],
  )


def _predictions(run: Recording) -> str:
  columns = (
    'model', 'bytes a weight', 'cards', 'rows', 'tokens a row', 'ms', 'weights',
    'cache', 'attention', 'tokens/s', 'memory',
  )  # fmt: skip
  return table(
    columns,
    [
      [
        row['name'],
        row['weight_bytes'],
        row['cards'],
        row['batch'],
        row['context'],
        *(
          f'{1e3 * row[name]:.2f}'
          for name in ('seconds', 'weights', 'cache', 'attention')
        ),
        round(row['batch'] / row['seconds']),
        '' if row['fits'] else 'does not fit',
      ]
      for row in run.select('prediction')
    ],
  )


def _published(run: Recording) -> str:
  return table(
    ('model', 'cards', 'rows', 'bound, ms', 'published, ms', 'share', 'source'),
    [
      [
        row['name'],
        f'{row["cards"]} {row["card"]}',
        row['batch'],
        f'{1e3 * row["bound"]:.2f}',
        f'{1e3 * row["seconds"]:.2f}',
        f'{row["bound"] / row["seconds"]:.3f}',
        row['where'],
      ]
      for row in run.select('published')
    ],
  )


def _growth(run: Recording) -> str:
  cells = []
  for fit in run.select('exponent'):
    points = run.select('growth', axis=fit['axis'])
    ordered = sorted(points, key=lambda row: row['at'])
    cells.append(
      [
        AXES[fit['axis']],
        *_end(ordered[0]),
        *_end(ordered[-1]),
        share(fit['exponent']),
        share(fit['last']),
      ]
    )
  columns = (
    'what grows', 'from', 'ms', 'GB/s', 'to', 'ms', 'GB/s', 'exponent',
    'of the last doubling',
  )  # fmt: skip
  return table(columns, cells)


def _end(row: Record) -> tuple[int, str, str]:
  speed = row['bytes'] / row['seconds'] / 1e9
  return row['at'], milliseconds(row['seconds']), f'{speed:.1f}'
