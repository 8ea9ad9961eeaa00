"""Long prefills by blocks of queries; second passes over the keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.attend import attention_weights, received
from kvjax.attention.reference import plain_attention
from kvjax.streams.view import contiguous_view
from tests.attention import oracle
from tests.attention.case import (
  POSITIONS,
  SCALE,
  SLOT_POSITIONS,
  B,
  S,
  draw,
  see,
)


@pytest.mark.parametrize(
  'rules',
  [
    pytest.param({}, id='causal'),
    pytest.param(see(window=17), id='window'),
    pytest.param({'softcap': 0.9}, id='softcap'),
  ],
)
def test_more_tokens_than_a_query_block(rules):
  """259 ragged tokens on 263 slots, ordered and not, equal plain softmax."""
  tokens, slots = 259, 263
  q, k, v = draw(14, 1, 2, tokens, slots)
  ask = jnp.arange(4, slots, dtype=jnp.int32)[None]
  ask = jnp.concatenate([ask, jnp.where(ask < 99, ask, -1)])
  slot_positions = jnp.broadcast_to(
    jnp.arange(slots, dtype=jnp.int32), (B, slots)
  )
  scoring = kvjax.Scoring(SCALE, **rules)
  want, _ = plain_attention(
    {'key': q}, {'key': k, 'value': v}, ask, slot_positions, scoring
  )
  for ordered in (False, True):
    view = contiguous_view(
      {'key': k, 'value': v}, slot_positions[:, None], slots, ordered=ordered
    )
    got, _ = jax.jit(
      lambda view=view: kvjax.attend({'key': q}, ask, (view,), scoring)
    )()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('block', [None, 5])
def test_weights_and_what_slots_received(block):
  q, k, v = draw(15)
  view = contiguous_view({'key': k, 'value': v}, SLOT_POSITIONS[:, None], S)
  scoring = kvjax.Scoring(SCALE)
  _, lse, weights = oracle.attention(
    q, POSITIONS, k, v, SLOT_POSITIONS, scale=SCALE
  )
  lse = jnp.asarray(lse, jnp.float32)
  ask = {'key': q}, POSITIONS, lse, view, scoring
  got = received(*ask, block=block)
  np.testing.assert_allclose(got, weights.sum((2, 3)), rtol=1e-5, atol=1e-6)
  got = received(*ask, heads=1, block=block)
  want = weights.sum((1, 2, 3))[:, None]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  seen, slot_positions = attention_weights(
    {'key': q}, POSITIONS, lse, view, scoring
  )
  np.testing.assert_allclose(seen, weights, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(slot_positions, SLOT_POSITIONS[:, None])
