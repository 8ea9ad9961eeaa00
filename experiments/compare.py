"""What does each attention variant remember, and what does forgetting cost?

Trains MHA, GQA, MQA and MLA models of equal size on real text and holds their
cached decoding against their uncached decoding, in logits, bits per byte,
bytes and seconds. See configs/compare.py.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import launch
from kvjax.models.config import ModelConfig
from kvjax.report import findings
from kvjax.report.answer import answer
from kvjax.report.writer import progress, start
from kvjax.training import pace, study
from kvjax.training.sample import Sample, attention, continuation
from kvjax.training.step import Recipe, train
from kvjax.training.text import Corpus, held_out_batch, load_corpus
from kvjax.training.variants import Shape, equal_models, num_params

Record = dict[str, Any]

_CONFIG = launch.define_config()
_WORKDIR = flags.DEFINE_string('workdir', 'out/compare', 'Where files go.')
_FLAGS = {
    'text': flags.DEFINE_string('text', None, 'File to learn from.'),
    'variants': flags.DEFINE_list('variant', None, 'Of mha, gqa, mqa, mla.'),
    'seed': flags.DEFINE_integer('seed', None, 'Of parameters and batches.'),
    'sample.prompt': flags.DEFINE_string('prompt', None, 'To continue.'),
    'sample.temperature': flags.DEFINE_float('temperature', None, '0: greedy.'),
    'sample.top_p': flags.DEFINE_float('top_p', None, 'Nucleus, up to 1.'),
    'sample.capacity': flags.DEFINE_integer('capacity', None, 'Of the cache.'),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """The config, checked and turned into what the library takes."""

  models: dict[str, ModelConfig]
  corpus: Corpus
  recipe: Recipe
  study: study.Study
  sample: Sample
  held_out: np.ndarray
  seeds: tuple[int, ...]


def check(config: ConfigDict) -> Setup:
  """Returns the setup; raises ValueError for what makes no sense."""
  corpus = load_corpus(config.text or None)
  recipe = Recipe(**config.training)
  pace.check_contexts(config.pace.contexts)
  if config.seeds < 1:
    raise ValueError(f'seeds={config.seeds} must be at least 1.')
  examined = study.Study(tolerance=config.tolerance, **config.evaluation)
  held_out = held_out_batch(
      corpus, rows=examined.rows, length=recipe.length
  )
  if examined.past >= recipe.length:
    raise ValueError(
        f'evaluation.past={examined.past} must be less than training.length='
        f'{recipe.length}.'
    )
  if not config.variants or len(set(config.variants)) < len(config.variants):
    raise ValueError(f'variants={list(config.variants)} must name at least one '
                     'variant, each once.')
  shape = Shape(**config.model)
  return Setup(
      models=equal_models(tuple(config.variants), shape),
      corpus=corpus,
      recipe=recipe,
      study=examined,
      sample=Sample(**config.sample).with_prompt(held_out[0]),
      held_out=held_out,
      seeds=tuple(range(config.seed, config.seed + config.seeds)),
  )


def sizes(setup: Setup) -> Iterator[Record]:
  """Yields what was trained and what was changed to make it equal."""
  target = None
  for variant, model in setup.models.items():
    count = num_params(model)
    target = target or count
    hidden = getattr(model.layers[0].mlp, 'hidden', None)
    yield {'record': 'model', 'variant': variant, 'parameters': count,
           'apart': count / target - 1, 'hidden': hidden}


def fit(setup: Setup, variant: str, seed: int) -> tuple[Any, Record]:
  """Trains a model; returns its parameters and the losses."""
  steps = setup.recipe.steps
  with progress(f'train {variant}, seed {seed}', steps) as advance:
    params, losses = train(setup.models[variant], setup.recipe, setup.corpus,
                           seed=seed, progress=advance)
  return params, {'record': 'training', 'losses': losses}


def examine(
    setup: Setup, variant: str, seed: int, params: Any
) -> Iterator[Record]:
  """Yields what a trained model says of its caches."""
  model, tokens = setup.models[variant], jnp.asarray(setup.held_out)
  total = len(setup.study.caches())
  with progress(f'read held-out text, {variant}', total) as advance:
    found = study.quality(setup.study, model, params, tokens)
    for done, record in enumerate(found, 1):
      yield {'record': 'quality', **record}
      advance(done)
  noise = study.separation(setup.study, model, params, setup.held_out, seed)
  yield {'record': 'separation', **noise}


def look(
    setup: Setup, config: ConfigDict, variant: str, params: Any
) -> Iterator[Record]:
  """Yields what one seed of a model is enough for: its pace, its prose."""
  model = setup.models[variant]
  with progress(f'time {variant}', 1):
    for record in pace.measure(model, params, **config.pace):
      yield {'record': 'pace', **record}
  text = continuation(setup.sample, model, params, config.seed)
  yield {'record': 'sample', 'prompt': setup.sample.prompt, 'text': text}


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    given = {name: flag.value for name, flag in _FLAGS.items()}
    config = launch.override(_CONFIG.value, given)
    setup = check(config)
  run = {'config': config.to_dict(), 'command': sys.argv,
         'text': setup.corpus.facts()}
  writer = start(_WORKDIR.value, 'compare',
                 'What a transformer must remember', run)
  writer = writer.show(*answer())
  records = [writer.record(record) for record in sizes(setup)]
  shown = None
  for seed in setup.seeds:
    for variant in setup.models:
      who = {'variant': variant, 'seed': seed}
      params, losses = fit(setup, variant, seed)
      records.append(writer.record(losses | who))
      for record in examine(setup, variant, seed, params):
        records.append(writer.record(record | who))
      if seed == setup.seeds[0]:
        for record in look(setup, config, variant, params):
          records.append(writer.record(record | who))
        shown = shown or (variant, params)
  name, params = shown
  seen = attention(setup.models[name], params, setup.sample.prompt)
  writer = writer.show(*findings.everything(records, config.expected_bits),
                       *findings.attention(name, *seen))
  print(f'Report: {writer.save()}')


if __name__ == '__main__':
  launch.run(main, 'compare.py')
