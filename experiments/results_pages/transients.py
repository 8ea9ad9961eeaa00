"""Temporaries that the plan predicts, compared with what XLA assigned."""

import math
import pathlib

from experiments.results_pages.markdown import (
  Record,
  document,
  paragraph,
  provenance,
  recordings,
  table,
)

FACTORS = 1.05, 1.1, 1.25, 1.5, 2.0
WORST = 10


def page(results: pathlib.Path) -> str:
  """Returns docs/results/transients.md."""
  (run,) = recordings(results / 'transients.jsonl')
  cases = run.select('case')
  inside = [
    [factor, sum(_distance(row) <= factor for row in cases), len(cases)]
    for factor in FACTORS
  ]
  worst = sorted(cases, key=_distance, reverse=True)[:WORST]
  return document(
    'Temporaries: planned and assigned',
    paragraph(
      'Models, caches and calls are drawn from seeds and compiled for a CPU. '
      'The ratio divides the temporaries that XLA assigned by those that '
      '`kvjax.memory.plan` predicts.'
    ),
    provenance(run),
    paragraph(f'Seeds {run.run["seeds"]}. {run.run["note"]}'),
    '## Cases within a factor, either way',
    table(('factor', 'cases', 'of'), inside),
    f'## The worst {WORST}',
    table(
      ('seed', 'case', 'planned bytes', 'assigned bytes', 'ratio'),
      [
        [
          row['seed'],
          row['case'],
          row['planned'],
          row['temporaries'],
          f'{row["ratio"]:.3f}',
        ]
        for row in worst
      ],
    ),
  )


def _distance(row: Record) -> float:
  """Returns the factor between planned and assigned, at least 1."""
  return math.exp(abs(math.log(row['ratio'])))
