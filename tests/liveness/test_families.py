"""Of every published decoder the analysis keeps what its cache allocates."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

import kvjax
from kvjax import liveness
from kvjax.checkpoints import load_config
from tests.checkpoints.families import FACTS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints'
DECODERS = {
  family: config
  for family, facts in FACTS.items()
  if (config := load_config(GOLDEN / next(iter(facts.cases)))).encoder is None
}


@pytest.mark.parametrize('family', DECODERS)
def test_queries_die_and_the_streams_of_the_cache_stay(family):
  config = DECODERS[family]
  # Equal layers would only add time.
  layers = tuple(dict.fromkeys(config.layers))
  config = dataclasses.replace(config, layers=layers)
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = np.arange(6, dtype=np.int32)[None] * 5 % config.vocab_size
  report = liveness.analyze(
    # One rotary table, whatever the number of tokens that the analysis tries.
    lambda ids: kvjax.forward(
      config, params, ids, form='absorbed', rotary_length=64
    ),
    tokens,
    axis=1,
  )
  kept = {row.name: row.bytes_per_token for row in report.tensors if row.kept}
  streams = [layer.attention.streams() for layer in config.layers]
  names = {name for own in streams for name in own}
  assert kept == {
    name: 4 * sum(s[name].heads * s[name].width for s in streams if name in s)
    for name in names
  }
  queries = [row for row in report.tensors if row.name.startswith('query')]
  assert queries and all(row.live_for == 0 for row in queries)
