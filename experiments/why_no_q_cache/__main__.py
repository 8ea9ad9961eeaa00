"""What must an attention program remember, and why is a query never in it?

Derives the answer from an uncached program, yours (`--program=module:function`)
or one of the variants, and draws it. Then puts a query leaf into a real decode
cache and reads what XLA makes of it. See configs/why_no_q_cache.py.
"""

import dataclasses
from typing import Any

import numpy as np
from absl import flags

import kvjax
from experiments import launch
from experiments.reporting.blocks import Table
from experiments.reporting.writer import start
from experiments.why_no_q_cache import derived, examples, query_leaf
from experiments.why_no_q_cache.crossing import crossing
from kvjax import liveness
from kvjax.memory.planning import plan
from kvjax.memory.speed.devices import Device, device

_TITLE = 'Why there is no Q cache'

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/why', 'Where files go.')
_FLAGS = {
  'variant': flags.DEFINE_string(
    'variant', None, f'Of {", ".join(examples.VARIANTS)}.'
  ),
  'program': flags.DEFINE_string('program', None, 'Your module:function.'),
  'seed': flags.DEFINE_integer('seed', None, 'Of the input.'),
  'device': flags.DEFINE_string('device', None, 'To name the fastest for.'),
}


@dataclasses.dataclass(frozen=True)
class WhySetup:
  """The config, checked and turned into what the library takes."""

  name: str
  program: examples.Program
  encoder: examples.Program | None  # without its mask, where that is known
  x: np.ndarray
  axis: int
  device: Device
  model: kvjax.ModelConfig
  batch_size: int
  capacity: int


def check(config: Any) -> WhySetup:
  """Returns the setup; raises ValueError for what makes no sense."""
  x = _input(config)
  if config.program:
    name = config.program
    program = examples.load_program(name, x)
    encoder = None
  else:
    sizes = examples.Sizes(**config.sizes)
    if config.shape[-1] != sizes.width:
      raise ValueError(
        f'shape={config.shape} must end in sizes.width={sizes.width}. '
        'Change one of the two.'
      )
    name = config.variant
    program = examples.example(name, sizes)
    encoder = examples.example(name, sizes, causal=False)
  attention = kvjax.Grouped(4, 2, key_width=8, rotary=kvjax.Rotary(8))
  layers = (kvjax.Layer(attention, kvjax.MLP(24)),) * config.decode.layers
  return WhySetup(
    name=name,
    program=program,
    encoder=encoder,
    x=x,
    axis=config.axis,
    device=device(config.device),
    model=kvjax.ModelConfig(vocab_size=17, width=16, layers=layers),
    batch_size=config.decode.batch_size,
    capacity=config.decode.capacity,
  )


def _input(config: Any) -> np.ndarray:
  shape = tuple(config.shape)
  if not 0 <= config.axis < len(shape) or min(shape, default=0) < 1:
    raise ValueError(
      f'axis={config.axis} must be an axis of shape={shape}, of sizes from 1.'
    )
  draw = np.random.default_rng(config.seed)
  if config.vocab_size:
    return draw.integers(0, config.vocab_size, shape).astype(np.int32)
  return draw.normal(size=shape).astype(np.float32)


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
    report = liveness.analyze(setup.program, setup.x, setup.axis)
  run = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'why_no_q_cache', _TITLE, run)
  reads = liveness.reach(setup.program, setup.x, setup.axis)
  encoder = setup.encoder and liveness.reach(setup.encoder, setup.x)
  graph = crossing(setup.program, setup.x, setup.axis)
  for record in derived.records(report, reads, encoder):
    writer.record(record)
  writer = writer.show(
    *derived.live(f'{setup.name}: what it must remember', report),
    *derived.trades(report, setup.device),
    *(derived.read_by(reads, encoder) if reads else ()),
    *derived.cut(graph),
  )
  forms = query_leaf.forms(setup.model, setup.batch_size, setup.capacity)
  for form in forms:
    writer.record({'record': 'form', **vars(form)})
  leaf_bytes = plan(
    setup.model, batch_size=setup.batch_size, capacity=setup.capacity
  ).query_cache_bytes
  claims = derived.claims(forms, leaf_bytes)
  writer = writer.show(*derived.query_leaf(forms, leaf_bytes))
  writer.finish(Table('Claims', ('claim', 'holds'), claims))


if __name__ == '__main__':
  launch.run(main, 'why_no_q_cache.py')
