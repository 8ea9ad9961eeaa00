"""How close to the speed of memory does kvjax decode, and beside whom?

Read bandwidth first, then attention alone, whole steps, prefill and the
generation of N tokens, each checked before it is timed. See
configs/benchmark_cpu.py and configs/benchmark_gpu.py.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from experiments import launch
from kvjax.benchmark import attention, clock, findings, model, peers
from kvjax.kernels import available, interpreted
from kvjax.report import records
from kvjax.report.writer import Writer, progress, start

Record = dict[str, Any]

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/benchmark', 'Where files go.')
_COMPARE = flags.DEFINE_list(
    'compare', None, 'Two .jsonl files of earlier runs; nothing is measured.'
)


def attention_rows(config: Any, read: float) -> Iterator[Record]:
  """Yields rows of attention alone."""
  chosen = config.attention
  for shape, batch, filled, dtype in itertools.product(
      chosen.shapes, chosen.batches, chosen.filled, chosen.dtypes
  ):
    heads, groups, width = shape
    case = attention.Case(
        batch, heads, groups, width, chosen.slots or filled, filled, dtype
    )
    whole = dataclasses.replace(case, filled=case.slots, dtype='float32')
    if whole.bytes > chosen.get('largest', whole.bytes):
      continue
    results = attention.measure(
        case, config.repeats, config.rotate, config.kernels, config.together
    )
    for row in clock.rate(results, read):
      yield {'record': 'attention', **dataclasses.asdict(case), **row}


def model_rows(config: Any, read: float) -> Iterator[Record]:
  """Yields rows of a whole model."""
  shape, params = model.build(config.model)
  for batch, context in config.steps:
    results = model.step(
        shape,
        params,
        batch,
        context,
        config.repeats,
        config.kernels,
        config.room,
    )
    for row in clock.rate(results, read):
      yield {'record': 'step', 'batch': batch, 'context': context, **row}
  for length in config.prompts:
    results = model.prompt(shape, params, length, min(config.repeats, 3))
    for row in clock.rate(results, read):
      yield {'record': 'prefill', 'batch': 1, 'context': length, **row}
  for batch, context, count in config.generate:
    for kernel in config.generate_kernels:
      results = model.tokens(shape, params, batch, context, count, 3, kernel)
      for row in clock.rate(results, read):
        given = {'batch': batch, 'context': context, 'tokens': count}
        yield {'record': 'generate', **given, **row}


def measure(config: Any, writer: Writer) -> Writer:
  """Measures everything; each row is written as it is found."""
  interpret = config.interpret and jax.default_backend() == 'cpu'
  with interpreted() if interpret else contextlib.nullcontext():
    return _measure(config, writer)


def _measure(config: Any, writer: Writer) -> Writer:
  limits = clock.bandwidth(config.bandwidth, config.repeats)
  writer.record({'record': 'bandwidth', **limits})
  read, found = limits['read'], []
  for title, rows in (
      ('Attention alone', attention_rows(config, read)),
      ('The model', model_rows(config, read)),
  ):
    with progress(title, 1):
      part = [writer.record(row) for row in rows]
    if part:
      writer = writer.show(findings.table(title, part, read))
    found += part
  return writer.show(*findings.picture(found, read))


def main(argv: list[str]) -> None:
  del argv
  if _COMPARE.value:
    with launch.door():
      if len(_COMPARE.value) != 2:
        raise ValueError(
            'compare takes two files: --compare=old.jsonl,new.jsonl.'
        )
      paths = [[pathlib.Path(path)] for path in _COMPARE.value]
      shown = findings.compare(*map(records.read, paths))
    start(_WORKDIR.value, 'comparison', 'Two runs', {}).show(shown)
    return
  config = _CONFIG.value
  run = {
      'config': config.to_dict(),
      'command': launch.command(),
      'kernels': available(),
      'absent': peers.absent(),
  }
  writer = start(_WORKDIR.value, 'benchmark', 'Decoding speed', run)
  print(f'Report: {measure(config, writer).save()}')


if __name__ == '__main__':
  launch.run(main, 'benchmark_cpu.py')
