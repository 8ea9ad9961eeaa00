"""What does XLA make of decode steps and prefills for an H200, without one?

  make aot-h200 TARGET=h200.txtpb              minutes, on two cores, no GPU
  python -m experiments.benchmark.gpu.aot_h200 --target=h200.txtpb --layers=2
  make aot-h200 TARGET=h200.txtpb ARGS=--part=sharded

The target is a description of the card in text, a GpuTargetConfigProto: dumped
on such a machine, or XLA's own
xla/backends/gpu/target_config/specs/h200.txtpb. It needs the wheels of the
CUDA compiler, which it names where they are missing, and no GPU.

Expected, and checked: alias bytes are the cache's; arguments and outputs are
the plan's; the plan's peak is never under XLA's, and over it by at most 5 % for
steps and 10 % for prefills; in a step no transpose of a cache-sized array; with
`mosaic_gpu` no cache-sized array at all but the cache, and no spills. Steps
over eight GPUs make the collectives of the formulas and no other. Where one of
these fails the last line says `Wrong`, and what, and the exit status is 1. It
says nothing of speed: no GPU runs.
"""

import dataclasses
import functools
from typing import Any

import jax
from absl import flags
from jax.sharding import SingleDeviceSharding

from experiments import launch
from experiments.benchmark.gpu import aot_compile, aot_mesh, aot_programs
from experiments.reporting.blocks import Table, Text
from experiments.reporting.writer import follow, start
from kvjax import kernels
from kvjax.checkpoints.load import load_config

_TARGET = flags.DEFINE_string('target', None, 'Description of the GPU.')
_LAYERS = flags.DEFINE_integer('layers', 4, 'Layers of a step.', lower_bound=1)
_MODEL = flags.DEFINE_string('model', 'llama-3-8b', 'Published config.')
PARTS = 'kernels', 'steps', 'sharded', 'prefills'
_PART = flags.DEFINE_multi_enum('part', PARTS, PARTS, 'What to compile.')
_WORKDIR = flags.DEFINE_string('workdir', 'out/aot_h200', 'Where files go.')

# Fields of a record that its table shows, where the record has them.
SHOWN = (
  'variant layers kernel form codec layout exchanges batch_size capacity '
  'new_tokens_per_step groups tokens width dtype ratio peak temporaries '
  'planned_temporaries launches registers spills failed'
).split()


def table(title: str, records: list[dict[str, Any]]) -> Table:
  """Returns what matters of the records; the JSON lines have the rest."""
  columns = {name: name for name in SHOWN if name in records[0]}
  return Table.of(title, columns, records)


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    if not _TARGET.value:
      raise ValueError(
        'target is not given: --target=FILE names a description of the GPU '
        '(a GpuTargetConfigProto in text).'
      )
    jax.config.update('jax_platforms', 'cpu')
    devices = aot_compile.devices(_TARGET.value, aot_mesh.DEVICES)
    sharding = SingleDeviceSharding(aot_compile.devices(_TARGET.value)[0])
    whole = load_config(_MODEL.value)
  few = dataclasses.replace(whole, layers=whole.layers[: _LAYERS.value])
  steps = aot_programs.steps(few)
  sharded = aot_mesh.steps(few)
  prefills = aot_programs.prefills(whole, _LAYERS.value)
  run = {'command': launch.command(), 'a_gpu_ran': False}
  run |= aot_compile.name_of(_TARGET.value)
  writer = start(_WORKDIR.value, 'aot_h200', 'Compiled for an H200', run)
  failed: list[str] = []
  with kernels.targeting('gpu'), aot_compile.assembler() as reports:
    compare = functools.partial(
      aot_programs.compare, sharding=sharding, reports=reports
    )
    compare_sharded = functools.partial(
      aot_mesh.compare, devices=devices, reports=reports
    )
    alone = aot_programs.alone(sharding, reports)
    for part, title, compiled, count in (
      ('kernels', 'Kernels', alone, 2 * len(aot_programs.KERNELS)),
      ('steps', 'Decode steps', map(compare, steps), len(steps)),
      ('sharded', 'Over 8 GPUs', map(compare_sharded, sharded), len(sharded)),
      ('prefills', 'Prefills', map(compare, prefills), len(prefills)),
    ):
      if part not in _PART.value:
        continue
      records = list(follow(title, map(writer.record, compiled), count))
      writer = writer.show(table(title, records))
      for r in records:
        failed += [f'{r.get("variant", title)}: {x}' for x in r['failed']]
  said = (
    f'Wrong: {"; ".join(failed)}.' if failed else 'All as expected. No GPU ran.'
  )
  writer.show(Text(said)).save()
  if failed:
    raise SystemExit(said)


if __name__ == '__main__':
  launch.run(main)
