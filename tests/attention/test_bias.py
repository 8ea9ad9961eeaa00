"""ALiBi's published slopes and T5's published buckets."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.bias import PositionBias

SLOPES = {
  8: [2.0**-i for i in range(1, 9)],
  # BLOOM's get_slopes(12): those of 8, then every other one of 16.
  12: [2.0**-i for i in range(1, 9)]
  + [0.70710678, 0.35355339, 0.17677670, 0.08838835],
  3: [2.0**-4, 2.0**-8, 2.0**-2],
}
# transformers' T5Attention._relative_position_bucket(32 buckets, 128).
PAST = {0: 0, 1: 1, 15: 15, 16: 16, 20: 17, 31: 21, 64: 26, 127: 31, 999: 31}
BOTH = {0: 0, 7: 23, -7: 7, -8: 8, 8: 24, 20: 26, -64: 14, -127: 15, 999: 31}


@pytest.mark.parametrize('heads', SLOPES)
def test_alibi_slopes(heads):
  got = kvjax.Alibi().table(heads, None)
  np.testing.assert_allclose(got, SLOPES[heads], rtol=1e-6)


def test_alibi_is_linear_in_distance(maybe_jit):
  rule = kvjax.Alibi(scale=0.5)
  bias = PositionBias(rule, rule.table(6, None))
  query_positions = jnp.asarray([5, 9], jnp.int32)[None, None, :, None]
  key_positions = jnp.asarray([0, 5, 7], jnp.int32)[None, None, None]
  got = maybe_jit(lambda a, b: bias(a, b, 3))(query_positions, key_positions)
  chex.assert_shape(got, (1, 3, 2, 2, 3))
  slopes = np.asarray(kvjax.Alibi().table(6, None)).reshape(3, 2)
  distance = np.asarray([[-5, 0, 2], [-9, -4, -2]])
  want = 0.5 * slopes[:, :, None, None] * distance
  np.testing.assert_allclose(got[0], want, rtol=1e-6)


def test_rounded_alibi_is_bfloat16():
  """Falcon's arithmetic: key positions from 0, rounded at every product."""
  rule = kvjax.Alibi(scale=0.25, rounded=True)
  bias = PositionBias(rule, rule.table(3, None))
  key_positions = jnp.asarray([3, 257, 301], jnp.int32)[None, None, None]
  got = np.asarray(bias(key_positions[..., :1] * 0 + 400, key_positions, 3))[
    0, :, 0, 0
  ]
  narrow = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
  slopes = narrow(np.asarray(SLOPES[3], np.float32))
  want = 0.25 * narrow(narrow(np.asarray([3.0, 257, 301])) * slopes[:, None])
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ('bidirectional', 'golden'),
  [
    pytest.param(False, PAST, id='decoder'),
    pytest.param(True, BOTH, id='encoder'),
  ],
)
def test_buckets(bidirectional, golden):
  rule = kvjax.RelativeBias(32, 128, bidirectional)
  sign = 1 if bidirectional else -1
  distance = jnp.asarray([sign * d for d in golden], jnp.int32)
  assert rule.bucket(distance).tolist() == list(golden.values())
  if not bidirectional:
    assert rule.bucket(jnp.asarray([1, 50])).tolist() == [0, 0]


def test_bias_differs_by_head_positions():
  """Where kv heads hold different tokens each head's own row counts."""
  rule = kvjax.Alibi()
  bias = PositionBias(rule, rule.table(4, None))
  key_positions = jnp.asarray([[[[0, 1]], [[2, 3]]]], jnp.int32)
  query_positions = jnp.asarray([[[[3]]]], jnp.int32)
  got = np.asarray(bias(query_positions, key_positions, 2))[0, :, :, 0]
  slopes = np.asarray(rule.table(4, None)).reshape(2, 2)
  want = slopes[:, :, None] * (np.asarray([[0, 1], [2, 3]])[:, None] - 3)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
  'shape', [pytest.param(None, id='none'), pytest.param((7, 3), id='other')]
)
def test_relative_bias_needs_its_table(shape):
  table = None if shape is None else jnp.zeros(shape)
  with pytest.raises(ValueError, match=r'needs a table \[32, 3\]'):
    kvjax.RelativeBias().table(3, table)
