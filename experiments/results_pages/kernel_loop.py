"""The CPU kernel in a loop: memory apart from arithmetic."""

import pathlib
from collections.abc import Sequence

from experiments.results_pages.markdown import (
  Recording,
  document,
  milliseconds,
  paragraph,
  provenance,
  recordings,
  share,
  table,
)

COLUMNS = 'reading, ms', 'arithmetic, ms', 'both, ms', 'of the floor', 'GFLOP/s'


def page(results: pathlib.Path) -> str:
  """Returns docs/results/kernel_loop.md."""
  (run,) = recordings(results / 'kernel_loop_cpu.jsonl')
  (machine,) = run.select('machine')
  return document(
    'The CPU kernel in a loop',
    paragraph(
      "The kernel's own headers run in a loop without XLA, on threads that "
      'never sleep. "Reading" is a sum over the same bytes; "arithmetic" is '
      'the kernel over so little data that a cache of the processor holds it; '
      '"both" is the kernel over data in memory. Where "both" is near the '
      'longer of the two, one hides behind the other.'
    ),
    provenance(run),
    paragraph(
      f'{machine["threads"]} threads do {machine["flops"] / 1e9:.0f} GFLOP/s '
      'of multiply-adds in registers; a sum reads '
      f'{machine["read"] / 1e9:.1f} GB/s.'
    ),
    '## Attention',
    paragraph(
      'A row with a rotated width is absorbed latent attention: its "G" are '
      'the heads that share one latent.'
    ),
    _times(
      run,
      'attention',
      ('dtype', 'heads', 'groups', 'width', 'rotary', 'slots'),
      ('dtype', 'kv heads', 'G', 'H', 'rotated width', 'slots'),
    ),
    '## Products of rows by a weight',
    _times(
      run,
      'projection',
      ('dtype', 'rows', 'lines', 'width'),
      ('dtype', 'rows', 'output channels', 'width'),
    ),
  )


def _times(
  run: Recording, record: str, fields: Sequence[str], columns: Sequence[str]
) -> str:
  return table(
    (*columns, *COLUMNS),
    [
      [
        *(row[name] for name in fields),
        *(milliseconds(row[x]) for x in ('reading', 'arithmetic', 'seconds')),
        share(row['of_floor']),
        round(row['flops'] / 1e9),
      ]
      for row in run.select(record)
    ],
  )
