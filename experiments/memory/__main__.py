"""What does inference with a model occupy, what fits, and where is Q?

Plans a published model (or a checkpoint's config.json), its variants and its
caches; no weights are read and nothing is allocated. See configs/memory.py.
"""

import dataclasses

from absl import flags

from experiments import launch
from experiments.memory import tables
from experiments.memory.setup import check, compiled, least_time
from experiments.reporting.writer import follow, start
from kvjax.memory import measure, reconcile

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
    facts = dataclasses.asdict(plans[name])
    fit = dataclasses.asdict(fits[name])
    del fit['plan']  # The record has it already.
    writer.record({'record': 'plan', 'model': name, 'plan': facts, 'fit': fit})
  planned = plans[setup.name]
  device = setup.device.name
  left = setup.device.memory - planned.params_bytes
  lines = {name: {c: b or 0 for c, b in fits[name].frontier} for name in fits}
  writer = writer.show(
    *tables.plan_table(setup.name, planned),
    tables.query_text(planned),
    *tables.fits(fits[setup.name], device, least_time(setup, planned)),
    tables.breakdown(plans, setup.device.memory, device),
    tables.growth(
      caches,
      (f'{device} next to the weights', left) if left > 0 else None,
      tables.query_bytes(planned),
    ),
    *tables.frontier(lines, device),
    *tables.lifetimes(),
  )
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


if __name__ == '__main__':
  launch.run(main, 'memory.py')
