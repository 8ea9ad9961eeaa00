"""What does inference with a model occupy, what fits, and where is Q?

Plans a published model (or a checkpoint's config.json), its variants and its
caches; no weights are read and nothing is allocated. See configs/memory.py.
"""

import dataclasses

from absl import flags

from experiments import launch
from experiments.memory import tables
from experiments.memory.setup import check, least_time
from experiments.reporting.writer import follow, progress, start
from kvjax import memory

_TITLE = 'What inference occupies'

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/memory', 'Where files go.')
_FLAGS = {
  'model': flags.DEFINE_string(
    'model', None, 'Path, smollm2-135m, llama-3-8b, ..., or Hub id x/y.'
  ),
  'checkpoint': flags.DEFINE_string('checkpoint', None, 'The same as --model.'),
  'batch': flags.DEFINE_integer('batch', None, 'Rows.'),
  'context': flags.DEFINE_integer('context', None, 'Tokens a row.'),
  'source': flags.DEFINE_integer('source', None, 'Positions of a source.'),
  'device': flags.DEFINE_string('device', None, 'H200, L4, TPU v5e, ...'),
  'devices': flags.DEFINE_integer('devices', None, 'That share the heads.'),
  'cache': flags.DEFINE_string(
    'cache', None, 'int8, ring:window=64, module:Name(...), ...'
  ),
  'compare': flags.DEFINE_list('compare', None, 'Of mha, gqa, mqa, mla.'),
  'measure': flags.DEFINE_bool('measure', None, 'Compile the step here.'),
}


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
  run = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'memory', _TITLE, run)
  fits, caches = {}, {}
  options = setup.request | setup.placement
  context, contexts = config.context, setup.contexts
  for name, model in follow('plan', setup.models.items(), len(setup.models)):
    fits[name] = memory.fit(
      model, setup.device, capacity=context, frontier=contexts, **options
    )
    caches[name] = {
      n: memory.plan(model, capacity=n, **options).cache_bytes for n in contexts
    }
    fit = dataclasses.asdict(fits[name])
    plan = fit.pop('plan')
    writer.record({'record': 'plan', 'model': name, 'plan': plan, 'fit': fit})
  device = setup.device
  plans = {name: fit.plan for name, fit in fits.items()}
  plan = plans[setup.name]
  writer = writer.show(
    *tables.plan_table(setup.name, plan),
    tables.query_text(plan),
    *tables.verdict(fits[setup.name], device.name, least_time(setup, plan)),
    tables.breakdown(plans, device),
    tables.growth(caches, device, plan),
    *tables.frontier(fits, device.name),
    *tables.lifetimes(plans, config.batch * context),
  )
  if config.measure:
    model = setup.models[setup.name]
    with progress('compile', 1):
      step = memory.compile_call(model, capacity=context, **setup.request)
    measured = memory.measure(step)
    writer.record({'record': 'measured', **dataclasses.asdict(measured)})
    # Of this machine, not of the device.
    plan = memory.plan(model, capacity=context, **setup.request)
    buffers = memory.reconcile(plan, step)
    writer = writer.show(*tables.against_xla(plan, measured, buffers))
  writer.save()


if __name__ == '__main__':
  launch.run(main, 'memory.py')
