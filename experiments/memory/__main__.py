"""What does inference with a model occupy, what fits, and where is Q?

Plans a published model (or a checkpoint's config.json), its variants and its
caches; no weights are read and nothing is allocated. See configs/memory.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

import kvjax
from experiments import launch
from experiments.measuring.variants import with_attention
from experiments.memory import tables
from experiments.reporting.writer import Writer, follow, start
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.parse import parse_cache
from kvjax.memory import (
  Device,
  Fit,
  MemoryPlan,
  StepTime,
  device,
  fit,
  measure,
  plan,
  reconcile,
  step_time,
)
from kvjax.memory.compiled.calls import compile_call

_TITLE = 'What inference occupies'

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/memory', 'Where files go.')
_FLAGS = {
  'model': flags.DEFINE_string('model', None, 'Published name, or a path.'),
  'checkpoint': flags.DEFINE_string('checkpoint', None, 'A directory.'),
  'batch': flags.DEFINE_integer('batch', None, 'Rows.'),
  'context': flags.DEFINE_integer('context', None, 'Tokens a row.'),
  'source': flags.DEFINE_integer('source', None, 'Positions of a source.'),
  'device': flags.DEFINE_string('device', None, 'H200, L4, TPU v5e, ...'),
  'devices': flags.DEFINE_integer('devices', None, 'That share the heads.'),
  'cache': flags.DEFINE_string('cache', None, 'int8, ring:window=64, ...'),
  'compare': flags.DEFINE_list('compare', None, 'Of mha, gqa, mqa, mla.'),
  'measure': flags.DEFINE_bool('measure', None, 'Compile the step here.'),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """The config, checked and turned into what the library takes."""

  name: str
  model: kvjax.ModelConfig
  variants: dict[str, kvjax.ModelConfig]
  device: Device
  options: dict[str, Any]
  batch: int
  context: int
  contexts: tuple[int, ...]

  def plan(self, model: kvjax.ModelConfig, capacity: int) -> MemoryPlan:
    return plan(model, batch_size=self.batch, capacity=capacity, **self.options)

  def fit(self, model: kvjax.ModelConfig) -> Fit:
    return fit(
      model,
      self.device,
      batch_size=self.batch,
      capacity=self.context,
      frontier=self.contexts,
      **self.options,
    )


def check(config: Any) -> Setup:
  """Returns the setup; raises ValueError for what makes no sense."""
  check_sizes(batch=config.batch, context=config.context)
  name = config.checkpoint or config.model
  model = kvjax.load_config(name)
  mesh = {'heads': config.devices} if config.devices != 1 else None
  kind, codec = parse_cache(config.cache)
  card = device(config.device)
  options = {'kinds': kind, 'codec': codec, 'mesh': mesh}
  options['backend'] = card.platform
  options['source_length'] = config.source or None
  longest = model.positions or max(*config.contexts, config.context)
  variants = {name: model}
  for variant in config.compare:
    other = with_attention(model, variant)
    if other != model:
      variants[variant.upper()] = other
  setup = Setup(
    name=name,
    model=model,
    variants=variants,
    device=card,
    options=options,
    batch=config.batch,
    context=config.context,
    contexts=tuple(n for n in config.contexts if n <= longest),
  )
  setup.plan(model, config.context)
  return setup


def least_time(setup: Setup, found: MemoryPlan) -> StepTime:
  """Returns the bound of a step of the whole batch at the whole context."""
  size = jnp.dtype(setup.model.dtype).itemsize
  return step_time(
    batch_size=1,
    cache_bytes_per_row=found.cache_bytes,
    weight_bytes=found.active_params_bytes / found.devices,
    params=setup.batch * found.active_params_bytes / size / found.devices,
    device=setup.device,
  )


def compiled(setup: Setup) -> jax.stages.Compiled:
  """Compiles the decode step for this machine, from shapes alone."""
  return compile_call(
    setup.model,
    batch_size=setup.batch,
    capacity=setup.context,
    kinds=setup.options['kinds'],
    codec=setup.options['codec'],
    source_length=setup.options['source_length'],
  )


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
  run = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'memory', _TITLE, run)
  plans, fits, caches = {}, {}, {}
  every = setup.variants.items()
  for name, model in follow('plan', every, len(every)):
    plans[name] = setup.plan(model, setup.context)
    caches[name] = {n: setup.plan(model, n).cache_bytes for n in setup.contexts}
    fits[name] = setup.fit(model)
    writer.record(_record(name, plans[name], fits[name]))
  writer = report(setup, writer, plans, fits, caches)
  if config.measure:
    (step,) = follow('compile', (compiled(setup) for _ in range(1)), 1)
    found = measure(step)
    writer.record({'record': 'measured', **dataclasses.asdict(found)})
    here = {'mesh': None, 'backend': None}
    here = dataclasses.replace(setup, options={**setup.options, **here})
    planned = here.plan(setup.model, setup.context)
    rows = reconcile(planned, step)
    writer = writer.show(*tables.against_xla(planned, found, rows))
  print(f'Report: {writer.save()}')


def _record(name: str, planned: MemoryPlan, found: Fit) -> dict[str, Any]:
  kept = {k: v for k, v in dataclasses.asdict(found).items() if k != 'plan'}
  facts = dataclasses.asdict(planned)
  return {'record': 'plan', 'model': name, 'plan': facts, 'fit': kept}


def report(
  setup: Setup,
  writer: Writer,
  plans: dict[str, MemoryPlan],
  fits: dict[str, Fit],
  caches: dict[str, dict[int, int]],
) -> Writer:
  """Shows tables and pictures."""
  first, name, limit = plans[setup.name], setup.device.name, setup.device.memory
  left = limit - first.params_bytes
  lines = {n: {c: b or 0 for c, b in f.frontier} for n, f in fits.items()}
  return writer.show(
    *tables.plan_table(setup.name, first),
    tables.query_text(first),
    *tables.fits(fits[setup.name], name, least_time(setup, first)),
    tables.breakdown(plans, limit, name),
    tables.growth(
      caches,
      (f'{name} beside the weights', left) if left > 0 else None,
      tables.query_bytes(first),
    ),
    *tables.frontier(lines, name),
    *tables.lifetimes(),
  )


if __name__ == '__main__':
  launch.run(main, 'memory.py')
