"""Programs compiled ahead of time for an H200: bytes, launches, registers."""

import collections
import pathlib
import re
from collections.abc import Sequence

from experiments.results_pages.markdown import (
  Record,
  Recording,
  document,
  megabytes,
  paragraph,
  provenance,
  recordings,
  table,
)

FILES = 'aot_h200_jax_0_10_2.jsonl', 'aot_h200_jax_0_11_2.jsonl'
FORMS = {'': '', 'after': 'merged after', 'inside': 'merged inside'}


def page(results: pathlib.Path) -> str:
  """Returns docs/results/aot_h200.md."""
  parts: list[str] = []
  for name in FILES:
    (run,) = recordings(results / name)
    parts += [
      f'## JAX {run.run["environment"]["jax"]}',
      provenance(run),
      paragraph(f'Compiled for: {run.run["target"]}. No GPU ran.'),
      paragraph(_verdict(run)),
      '### The kernel `mosaic_gpu` alone',
      _kernels(run.select('kernel')),
      '### Decode steps',
      _steps(run.select('step')),
      '### Prefills by `blockwise`',
      _prefills(run.select('prefill')),
    ]
  return document(
    'Programs compiled for an H200',
    paragraph(
      '`make aot-h200 TARGET=FILE` compiles decode steps and prefills for a '
      'card that is not there and reads what XLA says about them. "Plan over '
      'peak" divides the peak that `kvjax.memory.plan` predicts by the one '
      'that XLA assigns. It says nothing about speed.'
    ),
    *parts,
  )


def _verdict(run: Recording) -> str:
  """Returns what holds of all programs of a run, and what failed."""
  programs = [row for row in run.rows if 'planned_peak' in row]
  exact = all(
    row['arguments'] == row['planned_arguments']
    and row['outputs'] == row['planned_outputs']
    and row['alias'] == row['cache']
    for row in programs
  )
  failures = [text for row in run.rows for text in row['failed']]
  kernels = [row for row in run.rows if row.get('kernels')]
  registers = sorted({row['registers'] for row in kernels})
  spills = sum(row['spills'] for row in kernels)
  said = 'equal' if exact else 'do NOT all equal'
  return (
    f'Bytes of arguments and outputs {said} the plan, and aliased bytes {said} '
    f'the cache, in {len(programs)} programs. Kernels that the compiler '
    f'reported use {", ".join(map(str, registers))} registers, with {spills} '
    f'spills. Failed expectations: {"; ".join(failures) or "none"}.'
  )


def _kernels(rows: list[Record]) -> str:
  columns = (
    'G', 'tokens', 'H', 'E', 'dtype', 'mask', 'soft-cap', 'form', 'launches',
    'temporaries, MB', 'registers', 'spills',
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
        ', '.join(f'{name} {value}' for name, value in row['rule'].items()),
        '' if row['softcap'] is None else row['softcap'],
        FORMS[row['form']],
        row['launches'],
        megabytes(row['temporaries']),
        row['registers'],
        row['spills'],
      ]
      for row in rows
    ],
  )


def _steps(rows: list[Record]) -> str:
  columns = (
    'attention', 'kernel', 'form', 'rows x slots', 'layers', 'launches',
    'temporaries, MB', 'plan over peak', 'cache-sized arrays written',
  )  # fmt: skip
  return table(
    columns,
    [
      [
        row['variant'].upper(),
        f'`{row["kernel"]}`',
        FORMS[row['form']],
        f'{row["batch_size"]} x {row["capacity"]:,}',
        row['layers'],
        row['launches'],
        megabytes(row['temporaries']),
        f'{row["ratio"]:.3f}',
        _moved(row['moved']),
      ]
      for row in rows
    ],
  )


def _moved(instructions: Sequence[str]) -> str:
  """Returns instructions that write a cache-sized array, layers as one."""
  counts = collections.Counter(
    re.sub(r'layer_\d+', 'layer_i', name) for name in instructions
  )
  shown = (f'`{name}` ({count})' for name, count in counts.items())
  return ', '.join(shown) or 'none'


def _prefills(rows: list[Record]) -> str:
  columns = (
    'model', 'layers', 'rows x tokens', 'capacity', 'temporaries, MB',
    'plan over peak',
  )  # fmt: skip
  return table(
    columns,
    [
      [
        row['variant'],
        row['layers'],
        f'{row["batch_size"]} x {row["new_tokens_per_step"]:,}',
        row['capacity'],
        megabytes(row['temporaries']),
        f'{row["ratio"]:.3f}',
      ]
      for row in rows
    ],
  )
