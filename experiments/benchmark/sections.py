"""The parts of a benchmark, each a generator of records, in the order asked.

A record is written when it is yielded, and none is begun once the budget is
spent, so that whoever lends a device for ten minutes keeps what was found.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.benchmark import (
  cache_kinds,
  latent,
  layer,
  overhead,
)
from experiments.benchmark.gpu import (
  aot_compile,
  correctness,
  occupied,
  tile_sweep,
)
from experiments.benchmark.gpu.candidates import rows_first
from experiments.measuring import attention, clock, model
from experiments.measuring.variants import with_attention
from kvjax.kernels import available
from kvjax.kernels.hopper import tuning
from kvjax.models.decoder import init_params

Record = dict[str, Any]
COPIED = 4.3e12  # bytes a second of the H200 for which the bars are
KINDS = 'generate', 'step', 'prefill'


@dataclasses.dataclass(frozen=True)
class Run:
  """What the parts share.

  Attributes:
    config: of the experiment.
    workdir: where files go.
    budget: seconds of it all.
    limits: what the machine reads and copies, bytes a second.
    open: what lasts to the end of the run.
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

  def rated(self, results: Record) -> list[Record]:
    """Returns the rows of a race, by what the machine reads just then.

    Processors whose memory others share read a quarter more or less within
    minutes; an accelerator is measured once.
    """
    read = self.limits['read']
    if jax.default_backend() == 'cpu':
      read = clock.reading(self.config.bandwidth, self.config.repeats)
    return clock.rate(results, read)

  def judged(self, rows: list[Record], bar: Any) -> list[Record]:
    """Returns rows, those of kvjax beside what they should reach.

    Args:
      rows: of one race.
      bar: a field and the least that it should be; of seconds, the most.
        None for no bar.
    """
    if not bar:
      return rows
    field, value = bar
    # Bars are of an H200: another card is held to its own share of it.
    share = 1.0 if 'H200' in self.kind else self.limits['copy'] / COPIED
    if field == 'bandwidth':
      value *= share
    elif field == 'seconds':
      value /= share
    own = field, value
    return [
      row | {'bar': {'field': field, 'value': value, 'met': _met(row, *own)}}
      if row.get('kernel') and 'seconds' in row
      else row
      for row in rows
    ]


def _met(row: Record, field: str, value: float) -> bool:
  found = row[field]
  return found <= value if field == 'seconds' else found >= value


def target(run: Run) -> Iterator[Record]:
  """Yields where the description of this GPU was written, or why not."""
  path = run.workdir / f'{pathlib.Path(tuning.file_name(run.kind)).stem}.txtpb'
  record = {'record': 'target', 'name': run.kind}
  try:
    aot_compile.dump(path)
  except Exception as error:  # nothing else depends on it
    yield record | {'skipped': str(error).splitlines()[0]}
  else:
    yield record | {'file': str(path), **aot_compile.name_of(path)}


def checks(run: Run) -> Iterator[Record]:
  """Yields what `mosaic_gpu` computes here, a record a problem."""
  chosen = run.config.checks
  if reason := available()['mosaic_gpu']:
    yield {'record': 'correctness', 'name': 'mosaic_gpu', 'skipped': reason}
    return
  for form in chosen.forms:
    yield from correctness.rows(
      'mosaic_gpu', chosen.problems, chosen.lengths, chosen.slots, form
    )


def memory(run: Run) -> Iterator[Record]:
  """Yields what the device says that calls occupied, beside the plan.

  Each call must need more than any before: none of this process is forgotten.
  """
  for name, kernel, *sizes in run.config.memory:
    batch, capacity, tokens = sizes
    about = {'record': 'memory', 'name': run.kind, 'model': name}
    about |= {
      'kernel': kernel,
      'batch': batch,
      'context': capacity,
      'tokens': tokens,
    }
    shape = model.describe(run.config[name])
    yield about | occupied.measure(shape, kernel, *sizes)


def cuts(run: Run) -> Iterator[Record]:
  """Yields times of the kernel's tiles; keeps the best as its table.

  The table is written beside the records and used to the end of the run.
  """
  chosen, table = run.config.sweep, []
  heads, groups, width = chosen.heads_groups_width
  for batch, filled in chosen.shapes:
    if run.budget.spent:
      break
    case = attention.Case(
      batch, heads, groups, width, filled, filled, 'bfloat16'
    )
    pace = dataclasses.replace(
      attention.Pace.of(run.config), repeats=chosen.repeats
    )
    for row in tile_sweep.rows(case, pace, chosen.axes):
      yield row
      if row.get('best'):
        tiles = tuning.Tiles(row['block'], row['stages'], row['splits'])
        table.append((tile_sweep.problem(case), tiles))
  if not table:  # nothing was found: no table to be copied over an older one
    return
  path = run.workdir / tuning.file_name(run.kind)
  about = {'device': run.kind, 'jax': jax.__version__}
  text = json.dumps(tuning.dump(table, **about), indent=1)
  path.write_text(text + '\n', 'utf-8')
  run.open.enter_context(tuning.using(table))
  place = tuning.FOLDER.relative_to(tuning.FOLDER.parents[2])
  record = {'record': 'table', 'name': run.kind}
  yield record | {'file': str(path), 'for': str(place)}


def alone(run: Run) -> Iterator[Record]:
  """Yields rows of attention alone."""
  chosen = run.config.attention
  bars = {tuple(case): bar for case, bar in chosen.get('bars', ())}
  sizes = chosen.get('batches', ()), chosen.get('filled', ())
  cases = chosen.get('cases') or list(itertools.product(*sizes))
  for shape, (batch, filled), dtype in itertools.product(
    chosen.shapes, cases, chosen.dtypes
  ):
    if run.budget.spent:
      return
    heads, groups, width = shape
    case = attention.Case(
      batch, heads, groups, width, chosen.slots or filled, filled, dtype
    )
    whole = dataclasses.replace(case, filled=case.slots, dtype='float32')
    if whole.bytes > chosen.get('largest', whole.bytes):
      continue
    results = attention.measure(case, attention.Pace.of(run.config))
    rows = run.rated(results)
    for row in run.judged(rows, bars.get((batch, filled))):
      yield {'record': 'attention', **dataclasses.asdict(case), **row}


def products(run: Run) -> Iterator[Record]:
  """Yields rows of a product in the library's order and in a candidate's."""
  for rows, out, width in run.config.products:
    if run.budget.spent:
      return
    pace = attention.Pace.of(run.config)
    results = rows_first.race(rows, out, width, pace)
    about = {'record': 'product', 'rows': rows, 'out': out, 'width': width}
    for row in run.rated(results):
      yield about | row


def latents(run: Run) -> Iterator[Record]:
  """Yields rows of latent attention, absorbed beside expanded."""
  for sizes in run.config.latent:
    if run.budget.spent:
      return
    case = latent.Case(*sizes)
    results = latent.measure(case, attention.Pace.of(run.config))
    about = {'record': 'latent', **dataclasses.asdict(case)}
    for row in run.rated(results):
      yield about | row


def layers(run: Run) -> Iterator[Record]:
  """Yields rows of one attention layer."""
  config = run.config
  for batch, context in config.layer:
    if run.budget.spent:
      return
    about = {'record': 'layer', 'batch': batch, 'context': context}
    pace = config.repeats, config.kernels, config.room
    results = layer.measure(config.model, batch, context, *pace)
    for row in run.rated(results):
      yield about | row


def variants(run: Run) -> Iterator[Record]:
  """Yields rows of a step of each variant of the first model, by itself."""
  config = run.config
  whole = model.describe(config[config.models[0]])
  for (batch, context), name in itertools.product(
    config.variants.sizes, config.variants.names
  ):
    if run.budget.spent:
      return
    shape = with_attention(whole, name)
    params = init_params(shape, jax.random.key(0))
    pace = config.repeats, config.kernels, config.room, config.calls
    results = model.step(shape, params, batch, context, *pace, alone=True)
    about = {'record': 'step', 'variant': name, 'batch': batch}
    for row in run.rated(results):
      yield about | {'context': context} | _paced(row, batch)


def caches(run: Run) -> Iterator[Record]:
  """Yields rows of steps of the first model over each kind of cache."""
  config = run.config
  shape, params = model.build(config[config.models[0]])
  for batch, context in config.caches.sizes:
    if run.budget.spent:
      return
    case = cache_kinds.Case(shape, batch, context, config.room)
    results = cache_kinds.measure(
      case, params, config.caches.names, config.repeats
    )
    about = {'record': 'caches', 'batch': batch, 'context': context}
    rows = run.rated(results)
    for row in cache_kinds.beside_dense(rows):
      yield about | _paced(row, batch)


def overheads(run: Run) -> Iterator[Record]:
  """Yields what steps of many layers cost before a byte is read."""
  for count in run.config.overhead:
    deep = {**run.config.model.to_dict(), 'layers': count}
    about = {'record': 'overhead', 'layers': count}
    kernel = 'blockwise' if available()['ffi'] else 'ffi'
    yield about | overhead.compiling(model.describe(deep), kernel)
    for row in overhead.dispatching(count):
      yield about | row


def models(run: Run) -> Iterator[Record]:
  """Yields rows of whole models, a kind of row after the other."""
  yield from _models(run, run.config.get('kinds', KINDS))


def generation(run: Run) -> Iterator[Record]:
  """Yields rows of N tokens."""
  yield from _models(run, ('generate',))


def steps(run: Run) -> Iterator[Record]:
  """Yields rows of decode steps."""
  yield from _models(run, ('step',))


def prefills(run: Run) -> Iterator[Record]:
  """Yields rows of prompts."""
  yield from _models(run, ('prefill',))


def _models(run: Run, kinds: Sequence[str]) -> Iterator[Record]:
  races = []
  for name in run.config.models:
    chosen = run.config[name]
    bar = ('of_floor', chosen.bar) if chosen.get('bar') else None
    given = model.build(chosen)
    raced = chosen.get('transformers')
    races += [(name, bar, *race) for race in _races(run.config, *given, raced)]
  for kind in kinds:
    for name, bar, about, race in races:
      if run.budget.spent:
        return
      if about['record'] == kind:
        judged = bar if kind != 'prefill' and about['batch'] == 1 else None
        count = about['batch'] * about.get('tokens', 1)
        for row in _rated(run, race(), judged):
          row = row if kind == 'prefill' else _paced(row, count)
          yield {**about, 'model': name, **row}


def _paced(row: Record, tokens: int) -> Record:
  """Returns a row with the tokens of all rows that it makes a second."""
  if 'seconds' not in row:
    return row
  return {**row, 'tokens_per_second': tokens / row['seconds']}


def _rated(run: Run, results: Record, bar: Any) -> list[Record]:
  """Returns rows; a bar is of the model's own dtype, no narrower cache."""
  rows = run.rated(results)
  narrow = [row for row in rows if row['name'].endswith('int8')]
  return run.judged([r for r in rows if r not in narrow], bar) + narrow


def _races(
  config: Any, shape: Any, params: Any, caches: Any
) -> Iterator[tuple[Record, Callable[[], Any]]]:
  """Yields what each race is of, and the race.

  Args:
    config: of the experiment.
    shape: of the model.
    params: of the model.
    caches: kinds of transformers' that take part; None for all.
  """
  given = shape, params
  for batch, context, count in config.generate:
    for kernel in config.generate_kernels:
      about = {'batch': batch, 'context': context, 'tokens': count}
      sizes = batch, context, count
      yield (
        {'record': 'generate', **about},
        lambda s=sizes, k=kernel: model.tokens(*given, *s, 3, k),
      )
  for batch, context in config.steps:
    about = {'record': 'step', 'batch': batch, 'context': context}
    pace = config.repeats, config.kernels, config.room, config.calls
    sizes = batch, context, *pace, caches, tuple(config.get('forms', ()))
    yield about, lambda s=sizes: model.step(*given, *s)
  for length in config.prompts:
    about = {'record': 'prefill', 'batch': 1, 'context': length}
    sizes = length, min(config.repeats, 3), config.prompt_kernels
    yield about, lambda s=sizes: model.prompt(*given, *s)


SECTIONS: dict[str, tuple[str, Callable[[Run], Iterator[Record]]]] = {
  'target': ('Description of this GPU', target),
  'memory': ('LayerStore of this device', memory),
  'checks': ('Correctness of the kernel', checks),
  'sweep': ('Tiles of the kernel', cuts),
  'attention': ('Attention alone', alone),
  'variants': ('Steps of each variant', variants),
  'caches': ('Steps of each kind of cache', caches),
  'products': ('Products of several rows', products),
  'latent': ('Latent attention alone', latents),
  'layer': ('One attention layer', layers),
  'models': ('The model', models),
  'prefill': ('Prompts', prefills),
  'step': ('Steps', steps),
  'generate': ('Generation', generation),
  'overhead': ('Before a byte is read', overheads),
}
