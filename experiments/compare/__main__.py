"""What does each attention variant remember, and what does forgetting cost?

Trains MHA, GQA, MQA and MLA models of equal size on real text and compares
cached with uncached decoding of each: logits, bits per byte, bytes and seconds.
See configs/compare.py.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

import kvjax
from experiments import launch
from experiments.compare import findings, pace, study
from experiments.compare.sample import Sample, attention, continuation
from experiments.measuring.small_example import answer_blocks
from experiments.reporting.writer import follow, start
from experiments.training.step import Recipe, train
from experiments.training.text import Corpus, held_out_batch, load_corpus
from experiments.training.variants import Shape, equal_models
from kvjax.decoding.allocate import check_sizes

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
class CompareSetup:
  """The config, checked and turned into what the library takes."""

  models: dict[str, kvjax.ModelConfig]
  corpus: Corpus
  recipe: Recipe
  study: study.Study
  timing: pace.Timing
  sample: Sample
  held_out: np.ndarray
  seeds: tuple[int, ...]


def check(config: Any) -> CompareSetup:
  """Returns the setup; raises ValueError for what makes no sense."""
  corpus = load_corpus(config.text or None)
  recipe = Recipe(**config.training)
  check_sizes(seeds=config.seeds)
  how = study.Study(tolerance=config.tolerance, **config.evaluation)
  held_out = held_out_batch(corpus, rows=how.rows, length=recipe.length)
  if how.past >= recipe.length:
    raise ValueError(
      f'evaluation.past={how.past} must be less than training.length='
      f'{recipe.length}.'
    )
  if not config.variants or len(set(config.variants)) < len(config.variants):
    raise ValueError(
      f'variants={list(config.variants)} must name at least one '
      'variant, each once.'
    )
  return CompareSetup(
    models=equal_models(tuple(config.variants), Shape(**config.model)),
    corpus=corpus,
    recipe=recipe,
    study=how,
    timing=pace.Timing(**config.pace),
    sample=Sample(**config.sample).with_prompt(held_out[0]),
    held_out=held_out,
    seeds=tuple(range(config.seed, config.seed + config.seeds)),
  )


def examine(
  setup: CompareSetup, variant: str, seed: int, params: Any
) -> Iterator[Record]:
  """Yields findings of a trained model; pace and prose for one seed only."""
  model = setup.models[variant]
  text = setup.held_out
  figures = study.quality(setup.study, model, params, jnp.asarray(text))
  count = len(setup.study.caches())
  yield from follow(f'read text, {variant}', figures, count)
  yield study.separation(setup.study, model, params, text, seed)
  if seed == setup.seeds[0]:
    yield from pace.measure_pace(setup.timing, model, params)
    prose = continuation(setup.sample, model, params, seed)
    yield {'record': 'sample', 'prompt': setup.sample.prompt, 'text': prose}


def main(argv: list[str]) -> None:
  del argv
  with launch.door():
    config = launch.settled(_CONFIG, _FLAGS)
    setup = check(config)
  facts = setup.corpus.facts()
  run = {'config': config.to_dict(), 'command': launch.command(), 'text': facts}
  writer = start(_WORKDIR.value, 'compare', _TITLE, run).show(*answer_blocks())
  records = [writer.record(r) for r in study.sizes(setup.models)]
  heads = ()
  for seed in setup.seeds:
    for variant, model in setup.models.items():
      label = f'train {variant}, seed {seed}'
      params, losses = train(
        model, setup.recipe, setup.corpus, seed=seed, label=label
      )
      # Shown of the first model alone.
      heads = heads or findings.attention(
        variant, *attention(model, params, setup.sample.prompt)
      )
      training = {'record': 'training', 'losses': losses}
      examined = examine(setup, variant, seed, params)
      for record in itertools.chain([training], examined):
        labels = {'variant': variant, 'seed': seed}
        records.append(writer.record(record | labels))
  claims = findings.claims(records, config.expected_bits)
  writer = writer.show(
    findings.source(facts, setup.seeds),
    *heads,
    *findings.everything(records),
  )
  writer.finish(claims)


if __name__ == '__main__':
  launch.run(main, 'compare.py')
