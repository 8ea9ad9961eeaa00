"""The core against loops in NumPy and against jax.nn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention.bias import PositionBias
from kvjax.attention.reference import plain_attention
from kvjax.streams.view import contiguous_view, fresh_view
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
  S,
  attend,
  draw,
  see,
)

ALIBI = kvjax.Alibi()
T5 = kvjax.RelativeBias(buckets=8, max_distance=11)
TABLE = jax.random.normal(jax.random.key(9), (8, K * G))
SLOPES = np.asarray(ALIBI.table(K * G, None))
CASES = {
  'causal': ({}, {}),
  'window': (see(window=3), {'sees': lambda p, s: p - 3 < s <= p}),
  'chunk': (see(chunk=4), {'sees': lambda p, s: s <= p and p // 4 == s // 4}),
  'sink_tokens': (
    see(window=3, sink_tokens=2),
    {'sees': lambda p, s: s <= p and (s > p - 3 or s < 2)},
  ),
  'bidirectional': (see(causal=False), {'sees': lambda p, s: True}),
  'softcap': ({'softcap': 0.7}, {'softcap': 0.7}),
  'sinks': ({'sinks': SINKS}, {'sinks': SINKS}),
  'alibi': (
    {'bias': PositionBias(ALIBI, jnp.asarray(SLOPES))},
    {'bias': lambda n, p, s: SLOPES[n] * (s - p)},
  ),
  'softcap_alibi': (
    {'softcap': 0.7, 'bias': PositionBias(ALIBI, jnp.asarray(SLOPES))},
    {'softcap': 0.7, 'bias': lambda n, p, s: SLOPES[n] * (s - p)},
  ),
  'relative': (
    {'bias': PositionBias(T5, TABLE)},
    {'bias': lambda n, p, s: TABLE[T5.bucket(jnp.int32(s - p)), n]},
  ),
}


@pytest.mark.parametrize(('rules', 'second'), CASES.values(), ids=CASES)
def test_equals_loops(rules, second):
  q, k, v = draw()
  out, lse, weights = oracle.attention(
    q, POSITIONS, k, v, SLOT_POSITIONS, scale=SCALE, **second
  )
  for block in (None, 5):  # 13 slots are no multiple of 5
    run = jax.jit(functools.partial(attend, block=block, **rules))
    got, logs = run(q, k, v)
    np.testing.assert_allclose(got, out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logs, lse, rtol=1e-5, atol=1e-6)
  plain, found = plain_attention(
    {'key': q},
    {'key': k, 'value': v},
    POSITIONS,
    SLOT_POSITIONS,
    kvjax.Scoring(SCALE, **rules),
  )
  np.testing.assert_allclose(plain, out, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('kv', 'groups'),
  [
    pytest.param(1, 1, id='single'),
    pytest.param(6, 1, id='mha'),
    pytest.param(1, 6, id='mqa'),
    pytest.param(3, 2, id='gqa'),
  ],
)
def test_equals_dot_product_attention(kv, groups, maybe_jit):
  q, k, v = draw(1, kv, groups)
  q = q.at[1].multiply(2)
  slot_positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
  slot_positions = jnp.where(
    slot_positions < jnp.asarray([[13], [9]]), slot_positions, -1
  )
  ask = jnp.asarray([[8, 9, 10, 11, 12], [4, 5, 6, 7, 8]], jnp.int32)
  out, _ = maybe_jit(attend)(q, k, v, ask, slot_positions)
  seq = lambda x: jnp.moveaxis(x.reshape(B, -1, *x.shape[-2:]), 1, 2)
  mask = (slot_positions[:, None] <= ask[..., None]) & (
    slot_positions[:, None] >= 0
  )
  padded = jnp.pad(seq(v), ((0, 0),) * 3 + ((0, 0),))[..., :H]
  want = jax.nn.dot_product_attention(
    seq(q), seq(k), padded, mask=mask[:, None]
  )
  np.testing.assert_allclose(seq(out)[..., :H], want, rtol=1e-5, atol=1e-6)


def test_positions_per_head():
  q, k, v = draw(2)
  rng = np.random.default_rng(0)
  slot_positions = np.stack(
    [[rng.permutation(13) for _ in range(K)] for _ in range(B)]
  ).astype(np.int32)
  slot_positions[:, 1, ::3] = -1
  view = contiguous_view({'key': k, 'value': v}, jnp.asarray(slot_positions), S)
  got, lse = kvjax.attend(
    {'key': q}, POSITIONS, (view,), kvjax.Scoring(SCALE), block=4
  )
  want = oracle.attention(q, POSITIONS, k, v, slot_positions, scale=SCALE)
  np.testing.assert_allclose(got, want[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(lse, want[1], rtol=1e-5, atol=1e-6)


def test_only_the_filled_part_is_read():
  """Behind `filled` not even positions count."""
  q, k, v = draw(3)
  view = contiguous_view({'key': k, 'value': v}, SLOT_POSITIONS[:, None], 5)
  got, _ = kvjax.attend(
    {'key': q}, POSITIONS, (view,), kvjax.Scoring(SCALE), block=5
  )
  slot_positions = SLOT_POSITIONS.at[:, 5:].set(-1)
  want = oracle.attention(q, POSITIONS, k, v, slot_positions, scale=SCALE)[0]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_ordered_slots_stop_at_the_last_query():
  """In blocks of 5, with a last query before, at and after a new block."""
  q, k, v = draw(3, tokens=2)
  slot_positions = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
  view = contiguous_view(
    {'key': k, 'value': v}, slot_positions[:, None], S, ordered=True
  )
  run = jax.jit(
    lambda ask: kvjax.attend(
      {'key': q}, ask, (view,), kvjax.Scoring(SCALE), block=5
    )[0]
  )
  for last in (4, 5, 6, 12):
    ask = jnp.asarray([[last - 1, last], [0, -1]], jnp.int32)
    want = oracle.attention(q, ask, k, v, slot_positions, scale=SCALE)[0]
    np.testing.assert_allclose(run(ask), want, rtol=1e-5, atol=1e-6)


def test_two_streams_add_their_products():
  q, k, v = draw(4)
  p, r, _ = draw(5)
  view = fresh_view({'key': k, 'rotary': r, 'value': v}, SLOT_POSITIONS)
  got, _ = kvjax.attend(
    {'key': q, 'rotary': p}, POSITIONS, (view,), kvjax.Scoring(SCALE)
  )
  both = [jnp.concatenate(x, axis=-1) for x in ((q, p), (k, r))]
  want = oracle.attention(
    both[0], POSITIONS, both[1], v, SLOT_POSITIONS, scale=SCALE
  )
  np.testing.assert_allclose(got, want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  'name', [pytest.param('key', id='keys'), pytest.param('value', id='values')]
)
def test_poison(name):
  q, k, v = draw(6)
  streams = {'key': k, 'value': v}
  empty = (SLOT_POSITIONS < 0)[:, None, :, None]
  spoiled = streams | {name: jnp.where(empty, jnp.nan, streams[name])}
  run = jax.jit(lambda s: attend(q, s['key'], s['value'], block=5))
  chex.assert_trees_all_equal(run(spoiled), run(streams))


def test_empty_rows():
  q, k, v = draw(7)
  out, lse = jax.jit(attend)(q, k, v)
  empty = np.asarray(POSITIONS) < 0
  out, lse = np.moveaxis(out, 3, 1), np.moveaxis(lse, 3, 1)
  assert (out[empty] == 0).all()
  assert (lse[empty] == -np.inf).all()
  assert np.isfinite(lse[~empty]).all()


def test_narrow_types_follow_the_ratio_rule():
  """bfloat16 errs at most 3 times as far as plain bfloat16 does."""
  q, k, v = draw(10)
  exact = oracle.attention(q, POSITIONS, k, v, SLOT_POSITIONS, scale=SCALE)[0]
  narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  got, lse = jax.jit(attend)(*narrow)
  chex.assert_type([got, lse], jnp.float32)
  plain, _ = plain_attention(
    {'key': narrow[0]},
    {'key': narrow[1], 'value': narrow[2]},
    POSITIONS,
    SLOT_POSITIONS,
    kvjax.Scoring(SCALE),
  )
  worst = lambda x: np.abs(np.asarray(x) - exact).max()
  assert worst(got) <= 3 * worst(plain) + 1e-5
