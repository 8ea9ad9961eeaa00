"""The parts of a benchmark: what each measures, and the loop that runs them.

A record is written as soon as it is measured, and nothing is begun after the
budget is spent. A device that is available for ten minutes therefore leaves ten
minutes of records.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments.benchmark import cold_start, overhead, races, tables
from experiments.benchmark.gpu import (
  aot_compile,
  correctness,
  occupied,
  tile_sweep,
)
from experiments.benchmark.races import Race, Record, Run
from experiments.measuring import clock, model
from experiments.measuring.attention import AttentionCase
from experiments.measuring.clock import Pace
from experiments.reporting.blocks import Text
from experiments.reporting.writer import Writer, progress
from kvjax.kernels import available, interpreted
from kvjax.kernels.hopper import tuning


def describe_target(run: Run) -> Iterator[Record]:
  """Yields where the description of this GPU was written, or why not."""
  path = run.workdir / f'{pathlib.Path(tuning.file_name(run.kind)).stem}.txtpb'
  record = {'record': 'target', 'name': run.kind}
  try:
    aot_compile.dump(path)
  except Exception as error:  # nothing else depends on the description
    yield record | {'skipped': str(error).splitlines()[0]}
  else:
    yield record | {'file': str(path), **aot_compile.name_of(path)}


def check_kernel(run: Run) -> Iterator[Record]:
  """Yields what `mosaic_gpu` computes here, a record a problem."""
  chosen = run.config.checks
  if reason := available()['mosaic_gpu']:
    yield {'record': 'correctness', 'name': 'mosaic_gpu', 'skipped': reason}
    return
  for form in chosen.forms:
    yield from correctness.rows(
      'mosaic_gpu', chosen.problems, chosen.lengths, chosen.slots, form
    )


def occupy_memory(run: Run) -> Iterator[Record]:
  """Yields what the device says that calls occupied, and the plan.

  Each call must need more than every call before, because a device remembers
  the peak of the whole process.
  """
  for name, kernel, batch, capacity, tokens in run.config.memory:
    shape = model.describe(run.config[name])
    about = {'record': 'memory', 'name': run.kind, 'model': name}
    about |= {'kernel': kernel, 'batch': batch}
    about |= {'context': capacity, 'tokens': tokens}
    yield about | occupied.measure(shape, kernel, batch, capacity, tokens)


def sweep_tiles(run: Run) -> Iterator[Record]:
  """Yields times of the kernel's tiles; keeps the best as its table.

  The table is written into the folder of the records and used to the end of the
  run.
  """
  chosen = run.config.sweep
  table = []
  heads, groups, width = chosen.heads_groups_width
  pace = dataclasses.replace(Pace.of(run.config), repeats=chosen.repeats)
  for batch, slots in chosen.shapes:
    if run.is_over:
      break
    case = AttentionCase(batch, heads, groups, width, slots, slots, 'bfloat16')
    for row in tile_sweep.rows(case, pace, chosen.axes):
      yield row
      if row.get('best'):
        tiles = tuning.Tiles(row['block'], row['stages'], row['splits'])
        table.append((tile_sweep.problem(case), tiles))
  if not table:  # an empty table must not be copied over an older one
    return
  path = run.workdir / tuning.file_name(run.kind)
  text = tuning.dump(table, device=run.kind, jax=jax.__version__)
  path.write_text(json.dumps(text, indent=1) + '\n', 'utf-8')
  run.open.enter_context(tuning.using(table))
  place = tuning.FOLDER.relative_to(tuning.FOLDER.parents[2])
  record = {'record': 'table', 'name': run.kind}
  yield record | {'file': str(path), 'for': str(place)}


def time_hosts(run: Run) -> Iterator[Record]:
  """Yields what steps of many layers cost before a byte is read."""
  for count in run.config.overhead:
    deep = {**run.config.model.to_dict(), 'layers': count}
    about = {'record': 'overhead', 'layers': count}
    kernel = 'blockwise' if available()['ffi'] else 'ffi'
    yield about | overhead.time_compiling(model.describe(deep), kernel)
    for row in overhead.time_starts(count):
      yield about | row


def time_cold_starts(run: Run) -> Iterator[Record]:
  """Yields seconds of new processes, and of prompts in chunks."""
  yield from cold_start.time_starts(run.config.cold)
  yield from cold_start.time_chunks(run.config.cold, run.config.repeats)


def _races(cases: Callable[[Run], Iterator[Race]]) -> Any:
  return functools.partial(races.race_all, cases)


def _models(*kinds: str) -> Any:
  return _races(functools.partial(races.model_races, kinds))


# Title of each part, and the function that yields its records.
SECTIONS: dict[str, tuple[str, Callable[[Run], Iterator[Record]]]] = {
  'target': ('Description of this GPU', describe_target),
  'memory': ('Memory of this device', occupy_memory),
  'checks': ('Correctness of the kernel', check_kernel),
  'sweep': ('Tiles of the kernel', sweep_tiles),
  'attention': ('Attention alone', _races(races.attention_races)),
  'variants': ('Steps of each variant', _races(races.variant_races)),
  'caches': ('Steps of each kind of cache', _races(races.cache_races)),
  'products': ('Products of several rows', _races(races.product_races)),
  'latent': ('Latent attention alone', _races(races.latent_races)),
  'layer': ('One attention layer', _races(races.layer_races)),
  'models': ('The model', _models()),
  'prefill': ('Prompts', _models('prefill')),
  'step': ('Steps', _models('step')),
  'generate': ('Generation', _models('generate')),
  'cold': ('From the start of a process', time_cold_starts),
  'overhead': ('Before a byte is read', time_hosts),
}


def measure(
  config: Any, writer: Writer, deadline: float
) -> tuple[Writer, list[str]]:
  """Measures everything; each row is written as soon as it is measured.

  Returns:
    The report, and what of kvjax failed or was wrong.
  """
  with contextlib.ExitStack() as stack:
    if config.interpret and jax.default_backend() == 'cpu':
      stack.enter_context(interpreted())
    limits = clock.bandwidth(config.bandwidth, config.repeats, config.calls)
    writer.record({'record': 'bandwidth', **limits})
    run = Run(config, writer.workdir, deadline, limits, stack)
    return measure_sections(run, writer)


def measure_sections(run: Run, writer: Writer) -> tuple[Writer, list[str]]:
  """Measures the parts that a run's config names; see `measure`."""
  rows = []
  for name in run.config.sections:
    title, records = SECTIONS[name]
    if run.is_over:
      writer.record({'record': 'stopped', 'section': name})
      writer = writer.show(Text(f'Not begun, the budget was spent: {title}.'))
      continue
    with progress(title, 1):
      part = list(map(writer.record, _guarded(name, records(run))))
    clock.give_back()
    writer = writer.show(*tables.section(title, part))
    rows += part
    if any(row.get('interrupted') for row in part):
      break
  writer = writer.show(*tables.verdict(rows))
  writer = writer.show(*tables.picture(rows, run.limits['read']))
  return writer, tables.wrongs(rows)


def _guarded(name: str, records: Iterator[Record]) -> Iterator[Record]:
  """Yields a part's records; a failure becomes the last of them.

  The other parts go on after a failure. An interrupt ends the run.
  """
  about = {'record': name, 'name': 'the part', 'passed': False, 'ended': True}
  try:
    yield from records
  except KeyboardInterrupt:  # the report shows the records so far
    yield about | {'failed': 'interrupted', 'interrupted': True}
  except Exception as error:
    traceback.print_exc()
    yield about | {'failed': clock.reason(error)}
