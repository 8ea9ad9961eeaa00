"""Training learns, is reproducible, and its models are equal in size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.compare import study
from experiments.training import step, variants
from experiments.training.text import split
from experiments.training.variants import bytes_per_token, query_bytes_per_token

SHAPE = variants.Shape(
  layers=2,
  width=20,
  num_heads=4,
  num_kv_heads=2,
  key_width=6,
  rotary_width=4,
  latent_width=10,
  latent_rotary_width=2,
  hidden=80,
)


@pytest.fixture(autouse=True)
def standard_promotion():
  with jax.numpy_dtype_promotion('standard'):  # optax counts in Python ints
    yield


def test_loss_is_the_mean_of_minus_log_p():
  logits = jnp.asarray([[[0.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
  tokens = jnp.asarray([[0, 1, 0]])
  found = step.next_token_loss(logits, tokens)
  want = [np.log1p(np.exp(-1.0)), np.log1p(np.exp(-2.0))]
  np.testing.assert_allclose(found, [want], rtol=1e-6)


def test_uniform_guessing_costs_eight_bits():
  tokens = jnp.zeros((2, 5), jnp.int32)
  assert study.bits_per_byte(jnp.zeros((2, 5, 256)), tokens) == 8.0


def test_models_are_equal_within_two_percent():
  models = variants.equal_models(variants.VARIANTS, SHAPE)
  counts = [variants.num_params(m) for m in models.values()]
  assert max(counts) / min(counts) < 1.02
  hidden = [m.layers[0].mlp for m in models.values()]
  assert len(set(hidden)) > 1


def test_bytes_follow_from_the_config():
  models = variants.equal_models(variants.VARIANTS, SHAPE)
  found = {name: bytes_per_token(m) for name, m in models.items()}
  assert found == {
    'mha': 2 * 2 * 4 * 6 * 4,
    'gqa': 2 * 2 * 2 * 6 * 4,
    'mqa': 2 * 2 * 1 * 6 * 4,
    'mla': 2 * (10 + 2) * 4,
  }
  assert bytes_per_token(models['gqa'], kvjax.Int8()) == 2 * 2 * 2 * (6 + 4)
  assert query_bytes_per_token(models['mqa']) == 2 * 4 * 6 * 4
  assert query_bytes_per_token(models['mla']) == 2 * 4 * (6 + 2) * 4


def test_unknown_variants_are_refused():
  with pytest.raises(ValueError, match="variant='mxa' is unknown; known: mha"):
    variants.model('mxa', SHAPE)


def test_training_learns_and_repeats_itself():
  corpus = split(b'abcabcabd' * 2000, 'a loop')
  config = variants.model('gqa', SHAPE)
  recipe = step.Recipe(steps=12, batch=3, length=17, learning_rate=3e-2)
  first, losses = step.train(config, recipe, corpus, seed=1)
  again, _ = step.train(config, recipe, corpus, seed=1)
  assert losses[-1] < 0.6 * losses[0]
  jax.tree.map(np.testing.assert_array_equal, first, again)


@pytest.mark.parametrize('name', ['steps', 'batch', 'length'])
def test_a_recipe_refuses_nothing_to_do(name):
  sizes = {'steps': 1, 'batch': 1, 'length': 1} | {name: 0}
  with pytest.raises(ValueError, match=f'{name}=0 must be a positive integer'):
    step.Recipe(**sizes)


def test_cached_and_uncached_that_part_are_told_apart():
  logits = jnp.asarray([[1.0, -4.0]])
  assert study.assert_equal_logits(logits, logits, 1e-6) == 0
  with pytest.raises(AssertionError):
    study.assert_equal_logits(logits + 1e-3, logits, 1e-6)
