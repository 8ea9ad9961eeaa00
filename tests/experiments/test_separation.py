"""The separation, and who reads whom."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.measuring import separation
from experiments.measuring.separation import readers, replay, separate
from experiments.training import variants

SHAPE = variants.Shape(2, 20, 4, 2, 6, 4, 10, 2, 30, vocab_size=23)


@pytest.mark.parametrize('variant', variants.VARIANTS)
def test_past_queries_are_separated_by_what_is_kept(variant):
  config = variants.model(variant, SHAPE)
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 7), 0, 23)
  verdict = separate(config, params, tokens, 2)
  assert verdict.queries == 0  # bit for bit
  assert verdict.past_rows > 0.1  # though the noise was no small thing
  assert verdict.naive > 1e-3
  assert verdict.naive_by > 1e-3
  assert verdict.kept.shape == (2, 2, 6)
  assert (verdict.kept > 0).all()


def test_a_row_that_is_all_but_ignored_is_still_read():
  config = variants.model('mqa', SHAPE)
  params = kvjax.init_params(config, jax.random.key(0))
  for layer in params['layers']:  # attention picks one row and forgets the rest
    layer['attention']['query'] *= 300.0
  tokens = jax.random.randint(jax.random.key(1), (1, 7), 0, 23)
  verdict = separate(config, params, tokens, 2)
  assert verdict.faint.any()
  assert not verdict.faint.all()
  assert (verdict.kept > 0).sum() > (~verdict.faint).sum()
  assert verdict.queries == 0


def test_one_program_computes_all_that_is_compared(monkeypatch):
  # The other trace makes the past, and nothing is compared with its numbers.
  counted = chex.assert_max_traces(replay, n=2)
  monkeypatch.setattr(separation, 'replay', counted)
  config = variants.model('gqa', SHAPE)
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (1, 3), 0, 23)
  assert separate(config, params, tokens, 2).queries == 0


def test_replaying_the_past_as_it_was_is_the_uncached_model():
  config = variants.model('mla', SHAPE)
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 7), 0, 23)
  logits, past = replay(config, params, tokens)
  again, _ = replay(config, params, tokens, past)
  want = kvjax.forward(config, params, tokens)
  np.testing.assert_allclose(logits, want, atol=1e-5)
  np.testing.assert_allclose(again, want, atol=1e-5)


def test_a_first_layer_alone_has_no_path_for_an_early_query():
  config = variants.model(
    'mha', variants.Shape(1, 20, 4, 2, 6, 4, 10, 2, 30, vocab_size=23)
  )
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jnp.arange(5, dtype=jnp.int32)[None, :]
  verdict = separate(config, params, tokens, 2)
  assert verdict.naive == 0
  assert verdict.naive_by == 0


def test_a_window_ends_the_life_of_keys_and_values():
  scoring = kvjax.Scoring(1.0, visibility=kvjax.Visibility(window=2))
  read = readers(5, scoring)
  rows, columns = np.indices((5, 5))
  band = (columns <= rows) & (columns > rows - 2)
  np.testing.assert_array_equal(read['value'], band)
  # A softmax over one key is 1: the first query and key decide nothing.
  np.testing.assert_array_equal(np.diag(read['query'])[1:], [True] * 4)
  assert not read['query'][0].any()


def test_without_a_causal_mask_every_row_reads_every_key():
  scoring = kvjax.Scoring(1.0, visibility=kvjax.Visibility(causal=False))
  read = readers(4, scoring)
  assert read['key'].all() and read['value'].all()
  np.testing.assert_array_equal(read['query'], np.eye(4, dtype=bool))
