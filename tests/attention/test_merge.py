"""Merged parts are the whole; a sink logit is one more key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.streams.view import fresh_view
from tests.attention import oracle
from tests.attention.case import (
  POSITIONS,
  SCALE,
  SINKS,
  SLOT_POSITIONS,
  B,
  G,
  H,
  K,
  attend,
  draw,
)


@pytest.mark.parametrize('size', [1.0, 300.0])
def test_parts_equal_the_whole(size):
  """Also where scores are so large that exp of one is infinite."""
  q, k, v = draw(11)
  q = q * size
  cuts = [slice(0, 4), slice(4, 5), slice(5, 13)]
  views = [
    fresh_view({'key': k[:, :, c], 'value': v[:, :, c]}, SLOT_POSITIONS[:, c])
    for c in cuts
  ]
  scoring = kvjax.Scoring(SCALE)
  want = oracle.attention(q, POSITIONS, k, v, SLOT_POSITIONS, scale=SCALE)
  parts = [kvjax.attend({'key': q}, POSITIONS, (x,), scoring) for x in views]
  for out, lse in (
    kvjax.merge(parts),
    kvjax.attend({'key': q}, POSITIONS, views, scoring),
  ):
    np.testing.assert_allclose(out, want[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(lse, want[1], rtol=1e-5, atol=1e-5)


def test_golden(maybe_jit):
  """Weights 3 : 1 by log-sum-exps log 3 and 0, whatever is added to both."""
  a, b = jnp.asarray([[4.0], [1.0]]), jnp.asarray([[0.0], [9.0]])
  for shift in (0.0, 500.0):
    lses = jnp.log(jnp.asarray([3.0, 1e-30])) + shift, jnp.full(2, shift)
    run = maybe_jit(lambda *x: kvjax.merge([(x[0], x[1]), (x[2], x[3])]))
    out, lse = run(a, lses[0], b, lses[1])
    np.testing.assert_allclose(out, [[3.0], [9.0]], rtol=1e-5)
    np.testing.assert_allclose(lse, np.log([4.0, 1.0]) + shift, atol=1e-5)


def test_nothing_and_nothing():
  none = jnp.zeros((3, 2)), jnp.full(3, -jnp.inf)
  out, lse = kvjax.merge([none, none])
  assert (np.asarray(out) == 0).all()
  assert (np.asarray(lse) == -np.inf).all()


def test_what_a_part_that_saw_nothing_holds_is_not_read():
  none = jnp.full((3, 2), jnp.nan), jnp.full(3, -jnp.inf)
  some = jnp.ones((3, 2)), jnp.zeros(3)
  out, lse = kvjax.merge([none, some])
  assert (out.tolist(), lse.tolist()) == ([[1.0] * 2] * 3, [0.0] * 3)


def test_equals_one_more_key_without_value():
  q, k, v = draw(12)
  got, lse = jax.jit(lambda: attend(q, k, v, sinks=SINKS))()
  # A key that scores the sink's logit for every query, and a value of 0.
  q1 = jnp.concatenate(
    [
      q,
      jnp.broadcast_to(
        SINKS[None, :, :, None, None] / SCALE, q.shape[:4] + (1,)
      ),
    ],
    -1,
  )
  k1 = jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, 1)))
  extra = jnp.zeros((B, K, 1, H + 1)).at[..., -1].set(1)
  k1 = jnp.concatenate([k1, extra], axis=2)
  v1 = jnp.pad(v, ((0, 0), (0, 0), (0, 1), (0, 0)))
  slot_positions = jnp.pad(SLOT_POSITIONS, ((0, 0), (0, 1)))
  want, logs, _ = oracle.attention(
    q1, POSITIONS, k1, v1, slot_positions, scale=SCALE
  )
  live = np.broadcast_to(np.asarray(POSITIONS >= 0)[:, None, None], lse.shape)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    np.asarray(lse)[live], logs[live], rtol=1e-5, atol=1e-6
  )


def test_empty_row_is_zero():
  q, k, v = draw(13)
  out, lse = attend(q, k, v, sinks=SINKS)
  assert (np.asarray(out)[1, :, :, 2:] == 0).all()
  want = np.broadcast_to(np.asarray(SINKS)[:, :, None], (K, G, 3))
  np.testing.assert_allclose(lse[1, :, :, 2:], want, rtol=1e-6)
