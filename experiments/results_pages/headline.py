"""The README's speed table: one row a question, from the same records."""

import pathlib
from typing import Any

from experiments.results_pages.markdown import (
  Record,
  Recording,
  microseconds,
  milliseconds,
  recordings,
  relative,
  table,
)

STEP = 'a step of a 107M model, float32'
COLUMNS = 'machine', 'what', 'size', 'time', 'of the floor', 'compared with'


def speed_table(results: pathlib.Path) -> str:
  """Returns the table that the README shows."""
  cpu = recordings(results / 'benchmark_cpu.jsonl')[-1]
  (h100,) = recordings(results / 'benchmark_gpu_h100.jsonl')
  cores = f'{cpu.run["environment"]["cores"]} CPU cores'
  rows = [[cores, *row] for row in _cpu_rows(cpu)]
  rows += [['one H100', *row] for row in _h100_rows(h100)]
  return table(COLUMNS, rows)


def _cpu_rows(run: Recording) -> list[list[Any]]:
  def step(name: str, batch: int, context: int) -> Record:
    (row,) = run.select(
      'step', model='model', name=name, batch=batch, context=context
    )
    return row

  (prefill,) = run.select('prefill', name='kvjax')
  (attention,) = run.select(
    'attention', name='kvjax ffi', batch=8, groups=4, width=64,
    filled=8192, dtype='float32',
  )  # fmt: skip
  both = 'kvjax ffi weights int8, cache int8'
  return [
    _row(STEP, step('kvjax ffi', 1, 128)),
    _row(STEP, step('kvjax ffi', 8, 2048)),
    _row('... with int8 weights and cache', step(both, 8, 2048)),
    _row('a prefill of that model', prefill),
    _row('attention alone, float32', attention),
  ]


def _h100_rows(run: Recording) -> list[list[Any]]:
  (step,) = run.select('step', name='kvjax mosaic_gpu', model='small')
  (token,) = run.select(
    'generate', name='kvjax mosaic_gpu generate', model='model'
  )
  (attention,) = run.select(
    'attention', name='kvjax mosaic_gpu', batch=8, filled=32768
  )
  return [
    _row('attention alone, bfloat16', attention),
    _row('a step of a 1B-shaped model', step),
    _row('a token of an 8B-shaped model', token),
  ]


def _row(what: str, row: Record) -> list[str]:
  seconds = row['seconds'] / row.get('tokens', 1)
  unit = f'{milliseconds(seconds)} ms'
  if seconds < 1e-3:
    unit = f'{microseconds(seconds)} us'
  # A prefill waits for arithmetic, so its share of the floor says nothing.
  of_floor = '' if row['record'] == 'prefill' else f'{row["of_floor"]:.3f}'
  return [what, _size(row), unit, of_floor, _compare(row)]


def _size(row: Record) -> str:
  tokens = row['filled'] if 'filled' in row else row['context']
  noun = 'row' if row['batch'] == 1 else 'rows'
  return f'{row["batch"]} {noun} of {tokens:,}'


def _compare(row: Record) -> str:
  """Returns how a row compares with the fastest peer of its race."""
  if not row['ratios']:
    return ''
  name, ratio = min(row['ratios'].items(), key=lambda item: item[1])
  return f'{relative(ratio)} than {name}'
