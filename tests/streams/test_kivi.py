"""Keys by channel over groups of tokens, values by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.rotary import rotary_table, rotate
from kvjax.streams.codecs import ByChannel
from tests.streams import numpy_codecs

X = np.random.default_rng(2).standard_normal((24, 16)).astype(np.float32)
X[:, 3] *= 30
X[8:16, 5] = -2.5


def read(codec, x):
  encoded = jax.jit(lambda x: codec.encode(x, None))(jnp.asarray(x))
  return np.asarray(codec.decode(encoded))


@pytest.mark.parametrize(('bits', 'group'), [(2, 8), (4, 4), (8, 24)])
def test_golden(bits, group):
  """By the loop of another codec: tokens and features changed round."""
  codec = kvjax.KIVI(bits, group)
  keys = np.stack([X, X[::-1]])
  want = [numpy_codecs.affine(x.T.copy(), bits, group).T for x in keys]
  found = read(codec.of_stream('key'), keys)
  np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
  want = numpy_codecs.affine(X, bits, min(group, 16))
  values = kvjax.KIVI(bits, min(group, 16)).of_stream('value')
  np.testing.assert_allclose(read(values, X), want, rtol=1e-6, atol=1e-6)


def test_a_scale_serves_a_channel_of_a_group():
  encoded = ByChannel(bits=4, group=8).encode(jnp.asarray(X), None)
  assert encoded['codes'].shape == (24, 8)
  assert encoded['scale'].shape == encoded['zero'].shape == (3, 16)
  assert encoded['scale'].dtype == jnp.float16
  spread = np.ptp(X.reshape(3, 8, 16), axis=1) / 15
  np.testing.assert_allclose(encoded['scale'], spread, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
  ('channels', 'low', 'high'),
  [([60, 124, 61, 125], 0, 0.25), ([3, 67, 5, 69], 0.8, 1.25)],
  ids=['slow', 'fast'],
)
def test_constant_channels_cost_nothing_where_rotations_are_slow(
  channels, low, high
):
  """A6: against a scale a token, errors of scores."""
  width, tokens = 128, 512
  rng = np.random.default_rng(0)
  constant = np.zeros(width, np.float32)
  constant[channels] = 25, -20, 18, 22
  keys = rng.standard_normal((tokens, width)).astype(np.float32) + constant
  queries = rng.standard_normal((64, width)).astype(np.float32) + 0.1 * constant

  def turn(x, positions):
    table = rotary_table(kvjax.Rotary(width), positions[None], 0)
    return np.asarray(rotate(jnp.asarray(x)[None, None], table, False))[0, 0]

  keys = turn(keys, jnp.arange(tokens, dtype=jnp.int32))
  queries = turn(queries, jnp.full(64, tokens, jnp.int32))

  def error(codec):
    return np.sqrt(np.mean(((read(codec, keys) - keys) @ queries.T) ** 2))

  by_channel = error(kvjax.KIVI(4).of_stream('key'))
  assert low <= by_channel / error(kvjax.Affine(4, 32)) < high


REFUSED = {
  'bits': (lambda: kvjax.KIVI(3), 'KIVI bits=3 must be 2, 4 or 8'),
  'group': (lambda: kvjax.KIVI(group=0), 'group=0 must be at least 1'),
  'window': (lambda: kvjax.KIVI(window=0), 'window=0 must be at least 1'),
  'turned': (
    lambda: kvjax.Hadamard(kvjax.KIVI()),
    'scales each channel by itself',
  ),
}


@pytest.mark.parametrize(('make', 'match'), REFUSED.values(), ids=REFUSED)
def test_refusals(make, match):
  with pytest.raises(ValueError, match=match):
    make()
