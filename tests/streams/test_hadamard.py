"""Turned streams: the matrix, and what outliers cost with it and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.streams import numpy_codecs

WIDTH, TOKENS = 128, 512


@pytest.mark.parametrize(
  ('width', 'block', 'size'),
  [(64, None, 64), (96, None, 32), (96, 8, 8), (5, None, 1), (24, 2, 2)],
)
def test_each_block_is_multiplied_by_the_matrix(width, block, size):
  x = np.random.default_rng(0).standard_normal((2, 3, width)).astype(np.float32)
  codec = kvjax.Hadamard(kvjax.Plain(), block)
  found = codec.turn(jnp.asarray(x))
  parts = x.reshape(2, 3, width // size, size)
  want = (parts @ numpy_codecs.hadamard(size)).reshape(x.shape)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(codec.turn_back(found), x, rtol=1e-5, atol=1e-5)
  stored = codec.encode(jnp.asarray(x), jnp.float32)
  np.testing.assert_array_equal(codec.decode(stored), stored)


def rotate(x, positions):
  """Turns pairs of features by their position, as rotary attention does."""
  frequency = 1 / 10000 ** (np.arange(0, WIDTH, 2) / WIDTH)
  angle = positions[:, None] * frequency
  a, b = x[:, : WIDTH // 2], x[:, WIDTH // 2 :]
  cos, sin = np.cos(angle), np.sin(angle)
  return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)


def score_error(codec, outliers):
  """Returns the root mean square error of scores, keys with a constant."""
  rng = np.random.default_rng(0)
  constant = np.zeros(WIDTH)
  constant[list(outliers)] = [25, -20, 18, 22][: len(outliers)]
  keys = rng.standard_normal((TOKENS, WIDTH)) + constant
  queries = rng.standard_normal((64, WIDTH)) + 0.1 * constant
  keys = rotate(keys, np.arange(TOKENS))
  queries = rotate(queries, np.full(64, TOKENS))
  read = jax.jit(lambda x: codec.decode(codec.encode(x, None)))
  found = np.asarray(read(jnp.asarray(keys, jnp.float32)), np.float64)
  if isinstance(codec, kvjax.Hadamard):
    queries, turned = queries @ numpy_codecs.hadamard(WIDTH), keys
    keys = turned @ numpy_codecs.hadamard(WIDTH)
  return np.sqrt(((queries @ (found - keys).T) ** 2).mean())


@pytest.mark.parametrize('outliers', [(60, 124, 61, 125), (3, 67, 5, 69)])
def test_turning_takes_a_third_to_two_thirds_of_what_outliers_cost(outliers):
  """A6: in slow and in fast rotary pairs."""
  plain = score_error(kvjax.Affine(), outliers)
  turned = score_error(kvjax.Hadamard(kvjax.Affine()), outliers)
  assert 0.3 < turned / plain < 0.7


def test_without_outliers_turning_changes_little():
  plain = score_error(kvjax.Affine(), ())
  turned = score_error(kvjax.Hadamard(kvjax.Affine()), ())
  assert abs(turned / plain - 1) < 0.05


def test_refusals():
  with pytest.raises(ValueError, match='block=12 must be a power of two'):
    kvjax.Hadamard(kvjax.Int8(), 12)
  with pytest.raises(ValueError, match='must be a codec that turns nothing'):
    kvjax.Hadamard(kvjax.Hadamard(kvjax.Int8()))
  with pytest.raises(ValueError, match='must be a codec'):
    kvjax.Hadamard(None)
  with pytest.raises(ValueError, match='do not divide.* Give 16 or a smaller'):
    kvjax.Hadamard(kvjax.Int8(), 32).leaves(48, jnp.float32)
