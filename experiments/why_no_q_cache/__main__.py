"""What must an attention program remember, and why is a query never in it?

Derives the answer from an uncached program and draws it: yours
(`--program=module:function`), one of the variants, or the attention of a model
(`--model=smollm2-135m`). Then puts a query leaf into a real decode cache and
reads what XLA makes of it. See configs/why_no_q_cache.py.
"""

from typing import Any, NamedTuple

import numpy as np
from absl import flags

import kvjax
from experiments import launch
from experiments.reporting.blocks import Table
from experiments.reporting.writer import progress, start
from experiments.why_no_q_cache import derived, examples, query_leaf
from experiments.why_no_q_cache.crossing import crossing
from kvjax import liveness
from kvjax.memory.planning import plan
from kvjax.memory.speed.devices import device

_TITLE = 'Why there is no Q cache'
_ATTENTION = kvjax.Grouped(4, 2, key_width=8, rotary=kvjax.Rotary(8))

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/why', 'Where files go.')
_FLAGS = {
  'variant': flags.DEFINE_string(
    'variant', None, f'Of {", ".join(examples.VARIANTS)}.'
  ),
  'program': flags.DEFINE_string('program', None, 'Your module:function.'),
  'model': flags.DEFINE_string(
    'model', None, 'Path, smollm2-135m, llama-3-8b, ..., or Hub id x/y.'
  ),
  'seed': flags.DEFINE_integer('seed', None, 'Of the input.'),
  'device': flags.DEFINE_string('device', None, 'To name the fastest for.'),
}


class WhySetup(NamedTuple):
  """What is analysed; the config, checked.

  Attributes:
    name: of the variant, of the user's function, or of a model.
    program: without a cache.
    encoder: the variant without its mask; None for anything else.
    x: an input.
  """

  name: str
  program: examples.Program
  encoder: examples.Program | None
  x: np.ndarray


def check(config: Any) -> WhySetup:
  """Returns what the config names; raises ValueError if it makes no sense."""
  shape = tuple(config.shape)
  if not 0 <= config.axis < len(shape) or min(shape, default=0) < 1:
    raise ValueError(
      f'axis={config.axis} must be an axis of shape={shape}, of sizes from 1.'
    )
  draw = np.random.default_rng(config.seed)
  if config.vocab_size:
    x = draw.integers(0, config.vocab_size, shape).astype(np.int32)
  else:
    x = draw.normal(size=shape).astype(np.float32)
  if config.model:
    x = draw.integers(0, examples.VOCABULARY, shape[0]).astype(np.int32)
    return WhySetup(config.model, examples.of_model(config.model), None, x)
  name = config.program or config.variant
  if config.program:
    return WhySetup(name, examples.load_program(name, x), None, x)
  sizes = examples.Sizes(**config.sizes)
  if shape[-1] != sizes.width:
    raise ValueError(
      f'shape={shape} must end in sizes.width={sizes.width}. '
      'Change one of the two.'
    )
  encoder = examples.example(name, sizes, causal=False)
  return WhySetup(name, examples.example(name, sizes), encoder, x)


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    name, program, encoder, x = check(config)
    fastest_on = device(config.device)
    layers = (kvjax.Layer(_ATTENTION, kvjax.MLP(24)),) * config.decode.layers
    model = kvjax.ModelConfig(vocab_size=17, width=16, layers=layers)
    with progress('analyse', None):
      report = liveness.analyze(program, x, config.axis)
  run = {'config': config.to_dict(), 'command': launch.command()}
  writer = start(_WORKDIR.value, 'why_no_q_cache', _TITLE, run)
  reads = {'decoder': liveness.reach(program, x, config.axis)}
  if encoder is not None:
    reads['encoder'] = liveness.reach(encoder, x)
  for record in derived.records(report, reads):
    writer.record(record)
  writer = writer.show(
    *derived.live(f'{name}: what it must remember', report),
    *derived.trades(report, fastest_on),
    *derived.read_by(reads),
    *derived.cut(crossing(program, x, config.axis)),
  )
  batch_size, capacity = config.decode.batch_size, config.decode.capacity
  forms = query_leaf.forms(model, batch_size, capacity)
  for form in forms:
    writer.record({'record': 'form', **vars(form)})
  planned = plan(model, batch_size=batch_size, capacity=capacity)
  claims = derived.claims(forms, planned.query_cache_bytes)
  writer = writer.show(*derived.query_leaf(forms, planned.query_cache_bytes))
  writer.finish(Table('Claims', ('claim', 'holds'), claims))


if __name__ == '__main__':
  launch.run(main, 'why_no_q_cache.py')
