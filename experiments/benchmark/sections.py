"""The parts of a benchmark: what each measures, and the loop that runs them.

A record is written as soon as it is measured, and nothing is begun after the
budget is spent. A device that is available for ten minutes therefore leaves ten
minutes of records.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.benchmark import overhead, tables
from experiments.benchmark.cache_kinds import CacheCase
from experiments.benchmark.gpu import (
  aot_compile,
  correctness,
  occupied,
  tile_sweep,
)
from experiments.benchmark.latent import LatentCase
from experiments.benchmark.layer import LayerCase
from experiments.benchmark.prompts import GenerateCase, PromptCase
from experiments.measuring import clock, model
from experiments.measuring.attention import AttentionCase
from experiments.measuring.clock import Pace
from experiments.measuring.variants import with_attention
from experiments.reporting.blocks import Text
from experiments.reporting.writer import Writer, progress
from kvjax.kernels import available, interpreted
from kvjax.kernels.hopper import tuning
from kvjax.models.decoder import init_params

Record = dict[str, Any]
Bar = tuple[str, float]  # a field of a row, and the value that it should reach
COPIED = 4.3e12  # bytes a second that the H200 of the bars copies
KINDS = ('generate', 'step', 'prefill')


@dataclasses.dataclass(frozen=True)
class Run:
  """What the parts share.

  Attributes:
    config: of the experiment.
    workdir: where files go.
    budget: seconds of the whole run.
    limits: what the machine reads and copies, bytes a second.
    open: contexts that last to the end of the run.
  """

  config: Any
  workdir: pathlib.Path
  budget: clock.Budget
  limits: dict[str, float]
  open: contextlib.ExitStack

  @property
  def kind(self) -> str:
    """Name of the device."""
    return jax.devices()[0].device_kind

  @property
  def read(self) -> float:
    """Bytes a second that the machine reads now.

    The memory of a CPU is shared with other processes, and its speed changes by
    a quarter within minutes. An accelerator is measured once a run.
    """
    if jax.default_backend() != 'cpu':
      return self.limits['read']
    return clock.reading(self.config.bandwidth, self.config.repeats)

  def judged(self, rows: list[Record], bar: Bar | None) -> list[Record]:
    """Returns rows, those of kvjax with what they should reach.

    Args:
      rows: of one race.
      bar: a field and the least that it should be; of seconds, the most. It is
        meant for the model's dtype, so rows of int8 are not judged.
    """
    if not bar:
      return rows
    field, value = bar
    # Bars are of an H200; another card must reach its own share of them.
    share = 1.0 if 'H200' in self.kind else self.limits['copy'] / COPIED
    scale = {'bandwidth': share, 'seconds': 1 / share}
    value *= scale.get(field, 1.0)

    def judge(row):
      if not row.get('kernel') or 'seconds' not in row or _narrow(row):
        return row
      sign = -1 if field == 'seconds' else 1
      met = sign * row[field] >= sign * value
      return row | {'bar': {'field': field, 'value': value, 'met': met}}

    return list(map(judge, rows))


def _narrow(row: Record) -> bool:
  return row['name'].endswith('int8')


@dataclasses.dataclass(frozen=True)
class Race:
  """A case of a section.

  Attributes:
    case: that is measured.
    labels: further fields of its records.
    bar: that the rows of kvjax should reach.
    alone: whether kvjax runs without peers.
  """

  case: clock.Case
  labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  bar: Bar | None = None
  alone: bool = False


def race_all(
  races: Callable[[Run], Iterator[Race]], run: Run
) -> Iterator[Record]:
  """Yields the rows of each race that the budget allows."""
  pace = Pace.of(run.config)
  for race in races(run):
    if run.budget.spent:
      return
    case = race.case
    results = clock.measure(case, dataclasses.replace(pace, alone=race.alone))
    rows = clock.rate(results, run.read, case.base)
    for row in sorted(run.judged(rows, race.bar), key=_narrow):
      if case.decoded and 'seconds' in row:
        row |= {'tokens_per_second': case.decoded / row['seconds']}
      yield {**case.about, **race.labels, **row}


def attention_races(run: Run) -> Iterator[Race]:
  chosen = run.config.attention
  bars = {tuple(sizes): bar for sizes, bar in chosen.get('bars', ())}
  sizes = chosen.get('cases') or list(
    itertools.product(chosen.get('batches', ()), chosen.get('filled', ()))
  )
  for shape, (batch, filled), dtype in itertools.product(
    chosen.shapes, sizes, chosen.dtypes
  ):
    heads, groups, width = shape
    slots = chosen.slots or filled
    case = AttentionCase(batch, heads, groups, width, slots, filled, dtype)
    whole = dataclasses.replace(case, filled=slots, dtype='float32')
    if whole.bytes <= chosen.get('largest', whole.bytes):
      yield Race(case, bar=bars.get((batch, filled)))


def latent_races(run: Run) -> Iterator[Race]:
  for fields in run.config.latent:
    yield Race(LatentCase(*fields))


def layer_races(run: Run) -> Iterator[Race]:
  for batch, context in run.config.layer:
    yield Race(LayerCase.of(run.config.model, batch, context))


def variant_races(run: Run) -> Iterator[Race]:
  """Yields a step of each variant of the first model, without peers."""
  config = run.config
  shape = model.describe(config[config.models[0]])
  for (batch, context), name in itertools.product(
    config.variants.sizes, config.variants.names
  ):
    variant = with_attention(shape, name)
    params = init_params(variant, jax.random.key(0))
    case = model.StepCase(variant, params, batch, context)
    yield Race(case, {'variant': name}, alone=True)


def cache_races(run: Run) -> Iterator[Race]:
  """Yields steps of the first model over all kinds of cache."""
  config = run.config
  shape, params = model.build(config[config.models[0]])
  for batch, context in config.caches.sizes:
    yield Race(CacheCase(shape, params, batch, context, config.caches.names))


def model_races(kinds: Sequence[str] | None, run: Run) -> Iterator[Race]:
  """Yields works of whole models, one kind of work after the other.

  Args:
    kinds: of `KINDS`; None for those of the config.
    run: whose models are measured.
  """
  config = run.config
  built = {name: model.build(config[name]) for name in config.models}
  for kind in kinds or config.get('kinds', KINDS):
    for name, (shape, params) in built.items():
      bar = config[name].get('bar')
      for case in _works(config, name, shape, params)[kind]:
        judged = kind != 'prefill' and case.batch == 1
        yield Race(
          case, {'model': name}, ('of_floor', bar) if bar and judged else None
        )


def _works(
  config: Any, name: str, shape: Any, params: Any
) -> dict[str, Iterator[model.ModelCase]]:
  """Returns the cases of a model by kind, each made when it is measured.

  A case keeps its random streams, so earlier cases must not stay alive.
  """
  return {
    'generate': (
      GenerateCase(shape, params, batch, context, tokens, kernel)
      for batch, context, tokens in config.generate
      for kernel in config.generate_kernels
    ),
    'step': (
      model.StepCase(
        shape, params, batch, context, config[name].get('transformers')
      )
      for batch, context in config.steps
    ),
    'prefill': (
      PromptCase(shape, params, 1, context, config.prompt_kernels)
      for context in config.prompts
    ),
  }


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
    yield {
      'record': 'memory',
      'name': run.kind,
      'model': name,
      'kernel': kernel,
      'batch': batch,
      'context': capacity,
      'tokens': tokens,
      **occupied.measure(shape, kernel, batch, capacity, tokens),
    }


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
    if run.budget.spent:
      break
    case = AttentionCase(batch, heads, groups, width, slots, slots, 'bfloat16')
    for row in tile_sweep.rows(case, pace, chosen.axes):
      yield row
      if row.get('best'):
        tiles = tuning.Tiles(
          row['block'], row['stages'], row['splits'], row['merge']
        )
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


def _races(races: Callable[[Run], Iterator[Race]]) -> Any:
  return functools.partial(race_all, races)


def _models(*kinds: str) -> Any:
  return _races(functools.partial(model_races, kinds))


# Title of each part, and the function that yields its records.
SECTIONS: dict[str, tuple[str, Callable[[Run], Iterator[Record]]]] = {
  'target': ('Description of this GPU', describe_target),
  'memory': ('Memory of this device', occupy_memory),
  'checks': ('Correctness of the kernel', check_kernel),
  'sweep': ('Tiles of the kernel', sweep_tiles),
  'attention': ('Attention alone', _races(attention_races)),
  'variants': ('Steps of each variant', _races(variant_races)),
  'caches': ('Steps of each kind of cache', _races(cache_races)),
  'latent': ('Latent attention alone', _races(latent_races)),
  'layer': ('One attention layer', _races(layer_races)),
  'models': ('The model', _models()),
  'prefill': ('Prompts', _models('prefill')),
  'step': ('Steps', _models('step')),
  'generate': ('Generation', _models('generate')),
  'overhead': ('Before a byte is read', time_hosts),
}


def measure(
  config: Any, writer: Writer, budget: clock.Budget
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
    run = Run(config, writer.workdir, budget, limits, stack)
    return measure_sections(run, writer)


def measure_sections(run: Run, writer: Writer) -> tuple[Writer, list[str]]:
  """Measures the parts that a run's config names; see `measure`."""
  rows = []
  for name in run.config.sections:
    title, records = SECTIONS[name]
    if run.budget.spent:
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
