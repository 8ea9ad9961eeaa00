"""The factor on queries by their position, against its formula."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.reference import plain_attention
from tests.attention import oracle
from tests.attention.case import (
  POSITIONS,
  SCALE,
  SLOT_POSITIONS,
  B,
  G,
  K,
  attend,
  draw,
)
from tests.facts import tiny

TEMPERATURE = kvjax.Temperature(0.7, length=4, shift=1)


def factor(temperature, position):
  """Returns `1 + weight log(1 + floor((position + shift) / length))`."""
  steps = math.floor((position + temperature.shift) / temperature.length)
  return 1 + temperature.weight * math.log(1 + steps)


def test_the_factor_by_hand():
  """Llama 4: floor((8191 + 1) / 8192) is the first that is 1."""
  llama4 = kvjax.Temperature(0.1, length=8192, shift=1)
  positions = jnp.asarray([[0, 8190, 8191, 131_071]], jnp.int32)
  got = llama4.scale(jnp.ones((1, 1, 1, 4, 1)), positions)
  want = [1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(17)]
  np.testing.assert_allclose(got.ravel(), want, rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shift', [0, 1])
def test_equals_the_formula(dtype, shift, maybe_jit):
  temperature = kvjax.Temperature(0.7, length=4, shift=shift)
  query = draw()[0].astype(dtype)
  got = maybe_jit(temperature.scale)(query, POSITIONS)
  assert got.dtype == dtype
  limit = 1e-6 if dtype == 'float32' else 2**-8
  for b, t in np.ndindex(POSITIONS.shape):
    # A row that is no token has the factor of the first, and is masked.
    wanted = factor(temperature, max(int(POSITIONS[b, t]), 0))
    want = np.asarray(query[b, :, :, t], np.float64) * wanted
    found = np.asarray(got[b, :, :, t], np.float64)
    np.testing.assert_allclose(found, want, rtol=limit)


def test_attention_reads_it(maybe_jit):
  """Both ways of attending, against loops whose queries are scaled."""
  q, k, v = draw()
  factors = [
    [factor(TEMPERATURE, max(p, 0)) for p in row] for row in POSITIONS.tolist()
  ]
  scaled = np.asarray(q) * np.asarray(factors).reshape(B, 1, 1, -1, 1)
  want, lse, weights = oracle.attention(
    scaled, POSITIONS, k, v, SLOT_POSITIONS, scale=SCALE
  )
  run = maybe_jit(lambda q, k, v: attend(q, k, v, temperature=TEMPERATURE))
  got, logs = run(q, k, v)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(logs, lse, rtol=1e-5, atol=1e-6)
  plain, found = plain_attention(
    {'key': q},
    {'key': k, 'value': v},
    POSITIONS,
    SLOT_POSITIONS,
    kvjax.Scoring(SCALE, temperature=TEMPERATURE),
  )
  np.testing.assert_allclose(plain, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)
  assert q.shape[1:3] == (K, G)


def test_every_query_of_a_token_is_scaled():
  """Latent attention, absorbed, has two of them."""
  scoring = kvjax.Scoring(SCALE, temperature=TEMPERATURE)
  queries = {'latent': draw()[0], 'rotary': draw(1)[0]}
  got = scoring.scale_queries(queries, POSITIONS)
  for name, query in queries.items():
    want = TEMPERATURE.scale(query, POSITIONS)
    np.testing.assert_array_equal(got[name], want)
  assert kvjax.Scoring(SCALE).scale_queries(queries, POSITIONS) is queries


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    pytest.param({'length': 0}, 'length=0 must be at least 1', id='length'),
    pytest.param(
      {'length': 2.5}, 'length=2.5 must be a whole number', id='half'
    ),
    pytest.param({'shift': -1}, 'shift=-1 must be at least 0', id='shift'),
    pytest.param(
      {'weight': math.nan}, 'weight=nan must be a finite number', id='weight'
    ),
  ],
)
def test_refusals(fields, message):
  with pytest.raises(ValueError, match=message):
    kvjax.Temperature(**{'weight': 0.1, 'length': 8192} | fields)


def test_weights_of_a_cache_are_those_of_forward():
  """They are computed from the queries a second time."""
  config, ids = tiny.RECENT, tiny.tokens(2, 9)
  params = tiny.params(config)
  _, want = kvjax.forward(config, params, ids, attention_layers=(0, 1))
  cache = kvjax.init_cache(config, 2, 9)
  _, _, found = kvjax.extend(
    config, params, cache, ids, attention_layers=(0, 1)
  )
  for (weights, slot_positions), plain in zip(found, want, strict=True):
    np.testing.assert_array_equal(slot_positions[0, 0, :9], np.arange(9))
    np.testing.assert_allclose(weights[..., :9], plain, rtol=1e-5, atol=1e-6)
