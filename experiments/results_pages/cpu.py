"""The benchmark on a CPU: steps, kinds of cache, variants, attention."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results_pages.markdown import (
  COMMIT_WORDS,
  SPEED_WORDS,
  Record,
  Recording,
  document,
  milliseconds,
  paragraph,
  provenance,
  recordings,
  relative,
  share,
  span,
  table,
)

PEERS = 'transformers static', 'transformers dynamic'
STEP_COLUMNS = ('rows x tokens', 'what', 'ms', 'of the floor', *PEERS)


def page(results: pathlib.Path) -> str:
  """Returns docs/results/cpu.md."""
  whole, pages, host = (
    recordings(results / f'benchmark_cpu{name}.jsonl')[-1]
    for name in ('', '_pages', '_host')
  )
  float32, bfloat16, earlier = recordings(
    results / 'benchmark_cpu_step_avx512.jsonl'
  )
  (amd,) = recordings(results / 'benchmark_cpu_step.jsonl')
  return document(
    'Results on a CPU',
    paragraph(
      f'{SPEED_WORDS} {COMMIT_WORDS} Times are medians of interleaved turns. '
      'Other programs shared the memory of these machines: compare ratios '
      'within a run, not milliseconds of two runs. What was aimed at and '
      'missed is in [goals](goals.md).'
    ),
    '## The whole benchmark',
    *_whole(whole),
    '## Pages of 16 and of 64 tokens',
    provenance(pages),
    _kinds(pages),
    '## What a step costs its host',
    provenance(host),
    _overheads(host),
    '## Steps alone, float32',
    *_steps_alone(float32),
    '## Steps alone, bfloat16',
    *_steps_alone(bfloat16),
    '## Steps alone, float32, an earlier commit',
    *_steps_alone(earlier),
    '## Steps alone on a processor with AVX2',
    *_steps_alone(amd),
  )


def _whole(run: Recording) -> tuple[str, ...]:
  reads = [row['read'] for row in run.rows if 'ratios' in row]
  return (
    provenance(run),
    paragraph(
      f'`make bench` runs this command. A sum read {span(reads)} after the '
      'races.'
    ),
    '### Decode steps of the model of 107M parameters',
    _model(run),
    table(STEP_COLUMNS, step_rows(run.select('step', model='model'))),
    '### Tokens by `generate`, and as steps each waited for',
    _generate(run),
    '### A prefill',
    _prefill(run),
    '### Steps over each kind of cache, after 2,048 tokens',
    _kinds(run),
    '### Steps of one size with another attention',
    _variants(run),
    '### Latent attention alone, absorbed and expanded',
    _latent(run),
    '### One layer, projections included',
    table(
      ('rows x tokens', 'what', 'ms', 'of the floor', 'flax.nnx'),
      _raced(run.select('layer'), ('flax.nnx',)),
    ),
    '### What a step costs its host',
    _overheads(run),
    '### Attention alone',
    _attention(run),
  )


def _model(run: Recording) -> str:
  model = run.run['config']['model']
  return paragraph(
    f'{model["layers"]} layers, width {model["width"]}, {model["num_heads"]} '
    f'heads of {model["key_width"]} over {model["num_kv_heads"]} kv heads, '
    f'hidden {model["hidden"]}, vocabulary {model["vocab_size"]}, '
    f'{model.get("dtype", "float32")}. Both libraries have the same weights '
    'and the same cached keys and values; logits were compared before any '
    'time was taken.'
  )


def step_rows(rows: Sequence[Record]) -> list[list[Any]]:
  """Returns table rows of steps, compared with both caches of transformers."""
  return _raced(rows, PEERS)


def _raced(rows: Sequence[Record], peers: Sequence[str]) -> list[list[Any]]:
  return [
    [
      _size(row),
      row['name'],
      milliseconds(row['seconds']),
      share(row['of_floor']),
      *(_against(row, peer) for peer in peers),
    ]
    for row in rows
  ]


def _against(row: Mapping[str, Any], peer: str) -> str:
  """Returns how a row of kvjax compares with a peer; peers only give times."""
  ours = row['name'].startswith('kvjax')
  return relative(row['ratios'].get(peer)) if ours else ''


def _size(row: Record) -> str:
  return f'{row["batch"]} x {row["context"]:,}'


def _steps_alone(run: Recording) -> tuple[str, ...]:
  reads = [row['read'] for row in run.select('bandwidth')]
  return (
    provenance(run),
    _model(run),
    paragraph(f'A sum read {reads[0] / 1e9:.1f} GB/s before the races.'),
    table(STEP_COLUMNS, step_rows(run.select('step'))),
  )


def _generate(run: Recording) -> str:
  return table(
    ('rows x tokens', 'what', 'new tokens', 'ms a token', 'of the floor'),
    [
      [
        _size(row),
        row['name'],
        row['tokens'],
        milliseconds(row['seconds'] / row['tokens']),
        share(row['of_floor']),
      ]
      for row in run.select('generate')
    ],
  )


def _prefill(run: Recording) -> str:
  return table(
    ('rows x tokens', 'what', 'ms', 'transformers'),
    [
      [
        _size(row),
        row['name'],
        milliseconds(row['seconds']),
        _against(row, 'transformers'),
      ]
      for row in run.select('prefill')
    ],
  )


def _kinds(run: Recording) -> str:
  rows = run.select('caches')
  sizes = list(dict.fromkeys(row['batch'] for row in rows))
  columns = ['kind and codec']
  for batch in sizes:
    noun = 'row' if batch == 1 else 'rows'
    columns += [f'{batch} {noun}, ms', 'of the floor', 'than dense float32']
  by_name: dict[str, list[Any]] = {}
  for row in rows:
    name = row['name'].removeprefix('kvjax ')
    compared = '' if name == 'dense' else relative(row['ratios']['dense'])
    by_name.setdefault(name, []).extend(
      [milliseconds(row['seconds']), share(row['of_floor']), compared]
    )
  return table(columns, [[f'`{n}`', *cells] for n, cells in by_name.items()])


def _variants(run: Recording) -> str:
  rows = [row for row in run.select('step') if 'variant' in row]
  return table(
    ('attention', 'rows x tokens', 'what', 'ms', 'of the floor'),
    [
      [
        row['variant'].upper(),
        _size(row),
        row['name'],
        milliseconds(row['seconds']),
        share(row['of_floor']),
      ]
      for row in rows
    ],
  )


def _latent(run: Recording) -> str:
  rows = run.select('latent')
  expanded = 'kvjax ffi expanded'
  first = rows[0]
  sizes = paragraph(
    f'{first["batch"]} row, {first["heads"]} heads, latent {first["latent"]} '
    f'and {first["rotary"]} rotated, {first["slots"]:,} slots.'
  )
  compared = table(
    ('dtype', 'what', 'ms', 'of the floor', f'than {expanded}'),
    [
      [
        row['dtype'],
        row['name'],
        milliseconds(row['seconds']),
        share(row['of_floor']),
        relative(row['ratios'].get(expanded)),
      ]
      for row in rows
    ],
  )
  return f'{sizes}\n\n{compared}'


def _overheads(run: Recording) -> str:
  return table(
    ('layers', 'what', 'arrays', 'ms'),
    [
      [
        row['layers'],
        row['name'],
        row.get('leaves', ''),
        milliseconds(row['seconds']),
      ]
      for row in run.select('overhead')
      if 'seconds' in row
    ],
  )


def _attention(run: Recording) -> str:
  setting = run.run['config']['attention']
  filled = min(setting['filled'])
  heads = {shape[0] for shape in setting['shapes']}
  about = paragraph(
    f'Caches of {setting["slots"]:,} slots and {heads.pop()} kv heads, read by '
    f'`ffi`: once every slot is filled and once {filled:,} are. The last '
    'column divides the two times; the bytes divide by '
    f'{setting["slots"] // filled}. The record has `blockwise` as well.'
  )
  columns = (
    'rows', 'G', 'H', 'dtype', 'full, ms', 'of the floor', 'torch SDPA',
    '`jax.nn`', '1/8, ms', 'of the floor', 'torch SDPA', '1/8 to full',
  )  # fmt: skip
  rows = run.select('attention', name='kvjax ffi')
  part = {_key(row): row for row in rows if row['filled'] < row['slots']}
  cells = []
  for full in rows:
    if full['filled'] < full['slots']:
      continue
    eighth = part[_key(full)]
    cells.append(
      [
        *_key(full),
        milliseconds(full['seconds']),
        share(full['of_floor']),
        _against(full, 'torch sdpa'),
        _against(full, 'jax.nn'),
        milliseconds(eighth['seconds']),
        share(eighth['of_floor']),
        _against(eighth, 'torch sdpa'),
        share(eighth['seconds'] / full['seconds']),
      ]
    )
  return f'{about}\n\n{table(columns, cells)}'


def _key(row: Record) -> tuple[int, int, int, str]:
  return row['batch'], row['groups'], row['width'], row['dtype']
