"""The races of a benchmark: the cases that a config names, and their bars.

A record is yielded as soon as it is measured, and no race begins after the
budget is spent.
"""

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.benchmark.cache_kinds import CacheCase
from experiments.benchmark.latent import LatentCase
from experiments.benchmark.layer import LayerCase
from experiments.benchmark.prompts import GenerateCase, PromptCase
from experiments.measuring import clock, model
from experiments.measuring.attention import AttentionCase
from experiments.measuring.candidates.rows_first import ProductCase
from experiments.measuring.clock import Pace
from experiments.measuring.variants import with_attention
from kvjax.models.initialize import init_params

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
    deadline: reading of `time.monotonic` after which nothing is begun.
    limits: what the machine reads and copies, bytes a second.
    open: contexts that last to the end of the run.
  """

  config: Any
  workdir: pathlib.Path
  deadline: float
  limits: dict[str, float]
  open: contextlib.ExitStack

  @property
  def is_over(self) -> bool:
    """Whether nothing more may begin."""
    return time.monotonic() >= self.deadline

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
    if run.is_over:
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
  bars = dict(chosen.get('bars', ()))
  for shape, (batch, filled), dtype in itertools.product(
    chosen.shapes, chosen.cases, chosen.dtypes
  ):
    heads, groups, width = shape
    slots = chosen.slots or filled
    case = AttentionCase(batch, heads, groups, width, slots, filled, dtype)
    yield Race(case, bar=bars.get((batch, filled)))


def product_races(run: Run) -> Iterator[Race]:
  for rows, out, width in run.config.products:
    yield Race(ProductCase(rows, out, width))


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
  for batch, context in config.variants.sizes:
    for name in config.variants.names:
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
      for case in _works(kind, config, name, shape, params):
        judged = bar and kind != 'prefill' and case.batch == 1
        yield Race(case, {'model': name}, ('of_floor', bar) if judged else None)


def _works(kind, config, name, shape, params) -> Iterator[model.ModelCase]:
  """Yields the cases of a kind of work, each made when it is measured.

  A case keeps its random streams, so earlier cases must not stay alive.
  """
  if kind == 'generate':
    for batch, context, tokens in config.generate:
      yield GenerateCase(shape, params, batch, context, tokens)
  elif kind == 'step':
    transformers = config[name].get('transformers')
    for batch, context in config.steps:
      yield model.StepCase(shape, params, batch, context, transformers)
  else:
    for context in config.prompts:
      yield PromptCase(shape, params, 1, context, config.prompt_kernels)
