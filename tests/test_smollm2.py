"""A trained model, where `make model` has brought it: SmolLM2-135M-Instruct."""

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import text
from kvjax.native import build
from kvjax.text import smollm2

CACHE = build.user_cache()
if CACHE is None or not (CACHE / smollm2.NAME).exists():
  pytest.skip('no SmolLM2: `make model` brings it', allow_module_level=True)


@pytest.fixture(scope='module')
def model():
  return kvjax.load_checkpoint(smollm2.NAME)


@pytest.fixture(scope='module')
def tokenizer():
  return text.load_tokenizer(smollm2.NAME)


def test_ids(tokenizer):
  """Digits are single; `docs/dev/test_runs.md` says what these come from."""
  ids = tokenizer.encode('Hello, world! 2026 is naïve.')
  assert ids == [
    *(19556, 28, 905, 17, 216, 34, 32, 34, 38, 314, 15486, 46494, 30)
  ]


@pytest.mark.parametrize('codec', [None, kvjax.Int8()], ids=['float32', 'int8'])
def test_it_knows_the_capital_of_france(model, tokenizer, codec):
  ids = text.encode_prompts(tokenizer, ['What is the capital of France?'])
  batch = text.make_batch(model[0], ids)
  cache = kvjax.init_cache(model[0], 1, batch.tokens.shape[1] + 8, codec=codec)
  logits, cache = text.prefill_in_chunks(*model, cache, batch.ids)
  stops = text.stop_tokens(smollm2.NAME)
  tokens, _ = kvjax.generate(*model, cache, logits, 9, stop_tokens=stops)
  said = tokenizer.decode(tokens[0].tolist())
  assert said == 'The capital of France is Paris.'


def test_cached_equals_uncached(model, tokenizer):
  ids = tokenizer.encode('Cached decoding computes what the model computes.')
  tokens = jnp.asarray([ids])
  want = np.asarray(kvjax.forward(*model, tokens))
  cache = kvjax.init_cache(model[0], 1, len(ids))
  first, cache = kvjax.extend(*model, cache, tokens[:, :5])
  rest, _ = kvjax.extend(*model, cache, tokens[:, 5:])
  got = np.concatenate([first, rest], axis=1)
  assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
