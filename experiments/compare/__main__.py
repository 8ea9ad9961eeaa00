"""What does each attention variant remember, and what does forgetting cost?

Trains MHA, GQA, MQA and MLA models of equal size on real text and holds their
cached decoding against their uncached decoding, in logits, bits per byte,
bytes and seconds. See configs/compare.py.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import launch
from experiments.compare import findings, pace, study
from experiments.compare.sample import Sample, attention, continuation
from experiments.reporting.answer import answer
from experiments.reporting.writer import follow, progress, start
from experiments.training.step import Recipe, train
from experiments.training.text import Corpus, held_out_batch, load_corpus
from experiments.training.variants import Shape, equal_models
from kvjax.models.config import ModelConfig

Record = dict[str, Any]
_TITLE = 'What a transformer must remember'

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
  pace: dict[str, Any]
  sample: Sample
  held_out: np.ndarray
  seeds: tuple[int, ...]


def check(config: Any) -> Setup:
  """Returns the setup; raises ValueError for what makes no sense."""
  corpus = load_corpus(config.text or None)
  recipe = Recipe(**config.training)
  pace.check(**config.pace)
  if config.seeds < 1:
    raise ValueError(f'seeds={config.seeds} must be at least 1.')
  examined = study.Study(tolerance=config.tolerance, **config.evaluation)
  held_out = held_out_batch(corpus, rows=examined.rows, length=recipe.length)
  if examined.past >= recipe.length:
    raise ValueError(
      f'evaluation.past={examined.past} must be less than training.length='
      f'{recipe.length}.'
    )
  if not config.variants or len(set(config.variants)) < len(config.variants):
    raise ValueError(
      f'variants={list(config.variants)} must name at least one '
      'variant, each once.'
    )
  shape = Shape(**config.model)
  return Setup(
    models=equal_models(tuple(config.variants), shape),
    corpus=corpus,
    recipe=recipe,
    study=examined,
    pace=dict(config.pace),
    sample=Sample(**config.sample).with_prompt(held_out[0]),
    held_out=held_out,
    seeds=tuple(range(config.seed, config.seed + config.seeds)),
  )


def fit(setup: Setup, variant: str, seed: int) -> tuple[Any, Record]:
  """Trains a model; returns its parameters and the losses."""
  model, recipe = setup.models[variant], setup.recipe
  with progress(f'train {variant}, seed {seed}', recipe.steps) as advance:
    params, losses = train(
      model, recipe, setup.corpus, seed=seed, progress=advance
    )
  return params, {'record': 'training', 'losses': losses}


def examine(
  setup: Setup, variant: str, seed: int, params: Any
) -> Iterator[Record]:
  """Yields what a trained model says; pace and prose for one seed alone."""
  model, how, text = setup.models[variant], setup.study, setup.held_out
  found = study.quality(how, model, params, jnp.asarray(text))
  yield from follow(f'read text, {variant}', found, len(how.caches()))
  yield study.separation(how, model, params, text, seed)
  if seed == setup.seeds[0]:
    yield from pace.measure(model, params, **setup.pace)
    prose = continuation(setup.sample, model, params, seed)
    yield {'record': 'sample', 'prompt': setup.sample.prompt, 'text': prose}


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
  facts = setup.corpus.facts()
  run = {'config': config.to_dict(), 'command': launch.command(), 'text': facts}
  writer = start(_WORKDIR.value, 'compare', _TITLE, run).show(*answer())
  records = [writer.record(r) for r in study.sizes(setup.models)]
  kept = {}
  for seed in setup.seeds:
    for variant in setup.models:
      who = {'variant': variant, 'seed': seed}
      params, losses = fit(setup, variant, seed)
      kept.setdefault(variant, params)
      records.append(writer.record(losses | who))
      for record in examine(setup, variant, seed, params):
        records.append(writer.record(record | who))
  name, params = next(iter(kept.items()))
  claims = findings.claims(records, config.expected_bits)
  seen = attention(setup.models[name], params, setup.sample.prompt)
  writer = writer.show(
    findings.source(facts, setup.seeds),
    *findings.attention(name, *seen),
    *findings.everything(records),
    claims,
  )
  print(f'Report: {writer.save()}')
  if not all(holds for _, holds in claims.rows):
    raise SystemExit('A claim does not hold: see the last table.')


if __name__ == '__main__':
  launch.run(main, 'compare.py')
