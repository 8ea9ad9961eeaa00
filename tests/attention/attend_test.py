"""The core against loops in NumPy, against jax.nn, and against itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import kvjax
from kvjax.attention.attend import attention_weights, received
from kvjax.attention.bias import PositionBias
from kvjax.attention.plain import plain_attention
from kvjax.caches.view import contiguous_view, fresh_view
from tests.attention import oracle

B, K, G, T, S, H, E = 2, 3, 2, 5, 13, 7, 11
SCALE = H**-0.5
POSITIONS = jnp.asarray([[8, 9, 10, 11, 12], [3, 4, -1, -1, -1]], jnp.int32)
HELD = jnp.asarray(
  [[*range(13)], [4, -1, 0, 3, -1, 1, 2, -1, -1, -1, -1, -1, -1]], jnp.int32
)
ALIBI = kvjax.Alibi()
T5 = kvjax.RelativeBias(buckets=8, max_distance=11)
TABLE = jax.random.normal(jax.random.key(9), (8, K * G))
SINKS = jax.random.normal(jax.random.key(8), (K, G))
SLOPES = np.asarray(ALIBI.table(K * G, None))


def draw(seed=0, kv=K, groups=G, tokens=T, slots=S):
  """Returns normal queries, keys and values."""
  a, b, c = jax.random.split(jax.random.key(seed), 3)
  return (
    jax.random.normal(a, (B, kv, groups, tokens, H)),
    jax.random.normal(b, (B, kv, slots, H)),
    jax.random.normal(c, (B, kv, slots, E)),
  )


def attend(q, k, v, positions=POSITIONS, held=HELD, block=None, **rules):
  """Attends to one view of arrays."""
  view = fresh_view({'key': k, 'value': v}, held)
  scoring = kvjax.Scoring(SCALE, **rules)
  return kvjax.attend({'key': q}, positions, (view,), scoring, block=block)


def see(**rules):
  """Returns the option of a rule."""
  return {'visibility': kvjax.Visibility(**rules)}


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


class AttendTest(chex.TestCase):
  @parameterized.named_parameters((n, *case) for n, case in CASES.items())
  def test_equals_loops(self, rules, second):
    q, k, v = draw()
    out, lse, weights = oracle.attention(
      q, POSITIONS, k, v, HELD, scale=SCALE, **second
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
      HELD,
      kvjax.Scoring(SCALE, **rules),
    )
    np.testing.assert_allclose(plain, out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
    ('single', 1, 1), ('mha', 6, 1), ('mqa', 1, 6), ('gqa', 3, 2)
  )
  def test_equals_dot_product_attention(self, kv, groups):
    q, k, v = draw(1, kv, groups)
    q = q.at[1].multiply(2)
    held = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
    held = jnp.where(held < jnp.asarray([[13], [9]]), held, -1)
    ask = jnp.asarray([[8, 9, 10, 11, 12], [4, 5, 6, 7, 8]], jnp.int32)
    out, _ = self.variant(attend)(q, k, v, ask, held)
    seq = lambda x: jnp.moveaxis(x.reshape(B, -1, *x.shape[-2:]), 1, 2)
    mask = (held[:, None] <= ask[..., None]) & (held[:, None] >= 0)
    padded = jnp.pad(seq(v), ((0, 0),) * 3 + ((0, 0),))[..., :H]
    want = jax.nn.dot_product_attention(
      seq(q), seq(k), padded, mask=mask[:, None]
    )
    np.testing.assert_allclose(seq(out)[..., :H], want, rtol=1e-5, atol=1e-6)

  def test_positions_per_head(self):
    q, k, v = draw(2)
    rng = np.random.default_rng(0)
    held = np.stack(
      [[rng.permutation(13) for _ in range(K)] for _ in range(B)]
    ).astype(np.int32)
    held[:, 1, ::3] = -1
    view = contiguous_view({'key': k, 'value': v}, jnp.asarray(held), S)
    got, lse = kvjax.attend(
      {'key': q}, POSITIONS, (view,), kvjax.Scoring(SCALE), block=4
    )
    want = oracle.attention(q, POSITIONS, k, v, held, scale=SCALE)
    np.testing.assert_allclose(got, want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, want[1], rtol=1e-5, atol=1e-6)

  def test_only_the_filled_part_is_read(self):
    """Behind `filled` not even positions count."""
    q, k, v = draw(3)
    view = contiguous_view({'key': k, 'value': v}, HELD[:, None], 5)
    got, _ = kvjax.attend(
      {'key': q}, POSITIONS, (view,), kvjax.Scoring(SCALE), block=5
    )
    held = HELD.at[:, 5:].set(-1)
    want = oracle.attention(q, POSITIONS, k, v, held, scale=SCALE)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  def test_two_streams_add_their_products(self):
    q, k, v = draw(4)
    p, r, _ = draw(5)
    view = fresh_view({'key': k, 'rotary': r, 'value': v}, HELD)
    got, _ = kvjax.attend(
      {'key': q, 'rotary': p}, POSITIONS, (view,), kvjax.Scoring(SCALE)
    )
    both = [jnp.concatenate(x, axis=-1) for x in ((q, p), (k, r))]
    want = oracle.attention(both[0], POSITIONS, both[1], v, HELD, scale=SCALE)
    np.testing.assert_allclose(got, want[0], rtol=1e-5, atol=1e-6)

  @parameterized.named_parameters(('keys', 'key'), ('values', 'value'))
  def test_poison(self, name):
    q, k, v = draw(6)
    streams = {'key': k, 'value': v}
    empty = (HELD < 0)[:, None, :, None]
    spoiled = streams | {name: jnp.where(empty, jnp.nan, streams[name])}
    run = jax.jit(lambda s: attend(q, s['key'], s['value'], block=5))
    chex.assert_trees_all_equal(run(spoiled), run(streams))

  def test_empty_rows(self):
    q, k, v = draw(7)
    out, lse = jax.jit(attend)(q, k, v)
    empty = np.asarray(POSITIONS) < 0
    out, lse = np.moveaxis(out, 3, 1), np.moveaxis(lse, 3, 1)
    self.assertTrue((out[empty] == 0).all())
    self.assertTrue((lse[empty] == -np.inf).all())
    self.assertTrue(np.isfinite(lse[~empty]).all())

  def test_narrow_types_follow_the_ratio_rule(self):
    """bfloat16 errs at most 3 times as far as plain bfloat16 does."""
    q, k, v = draw(10)
    exact = oracle.attention(q, POSITIONS, k, v, HELD, scale=SCALE)[0]
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    got, lse = jax.jit(attend)(*narrow)
    chex.assert_type([got, lse], jnp.float32)
    plain, _ = plain_attention(
      {'key': narrow[0]},
      {'key': narrow[1], 'value': narrow[2]},
      POSITIONS,
      HELD,
      kvjax.Scoring(SCALE),
    )
    worst = lambda x: np.abs(np.asarray(x) - exact).max()
    self.assertLessEqual(worst(got), 3 * worst(plain) + 1e-5)


class MergeTest(chex.TestCase):
  @parameterized.parameters(1.0, 300.0)
  def test_parts_equal_the_whole(self, size):
    """Also where scores are so large that exp of one is infinite."""
    q, k, v = draw(11)
    q = q * size
    cuts = [slice(0, 4), slice(4, 5), slice(5, 13)]
    views = [
      fresh_view({'key': k[:, :, c], 'value': v[:, :, c]}, HELD[:, c])
      for c in cuts
    ]
    scoring = kvjax.Scoring(SCALE)
    want = oracle.attention(q, POSITIONS, k, v, HELD, scale=SCALE)
    parts = [kvjax.attend({'key': q}, POSITIONS, (x,), scoring) for x in views]
    for out, lse in (
      kvjax.merge(parts),
      kvjax.attend({'key': q}, POSITIONS, views, scoring),
    ):
      np.testing.assert_allclose(out, want[0], rtol=2e-5, atol=2e-5)
      np.testing.assert_allclose(lse, want[1], rtol=1e-5, atol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_golden(self):
    """Weights 3 : 1 by log-sum-exps log 3 and 0, whatever is added to both."""
    a, b = jnp.asarray([[4.0], [1.0]]), jnp.asarray([[0.0], [9.0]])
    for shift in (0.0, 500.0):
      lses = jnp.log(jnp.asarray([3.0, 1e-30])) + shift, jnp.full(2, shift)
      run = self.variant(lambda *x: kvjax.merge([(x[0], x[1]), (x[2], x[3])]))
      out, lse = run(a, lses[0], b, lses[1])
      np.testing.assert_allclose(out, [[3.0], [9.0]], rtol=1e-5)
      np.testing.assert_allclose(lse, np.log([4.0, 1.0]) + shift, atol=1e-5)

  def test_nothing_and_nothing(self):
    none = jnp.zeros((3, 2)), jnp.full(3, -jnp.inf)
    out, lse = kvjax.merge([none, none])
    self.assertTrue((np.asarray(out) == 0).all())
    self.assertTrue((np.asarray(lse) == -np.inf).all())


class SinkLogitTest(chex.TestCase):
  def test_equals_one_more_key_without_value(self):
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
    held = jnp.pad(HELD, ((0, 0), (0, 1)))
    want, logs, _ = oracle.attention(q1, POSITIONS, k1, v1, held, scale=SCALE)
    live = np.broadcast_to(np.asarray(POSITIONS >= 0)[:, None, None], lse.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
      np.asarray(lse)[live], logs[live], rtol=1e-5, atol=1e-6
    )

  def test_empty_row_is_zero(self):
    q, k, v = draw(13)
    out, lse = attend(q, k, v, sinks=SINKS)
    self.assertTrue((np.asarray(out)[1, :, :, 2:] == 0).all())
    want = np.broadcast_to(np.asarray(SINKS)[:, :, None], (K, G, 3))
    np.testing.assert_allclose(lse[1, :, :, 2:], want, rtol=1e-6)


class LongPrefillTest(chex.TestCase):
  @parameterized.named_parameters(
    ('causal', {}), ('window', see(window=17)), ('softcap', {'softcap': 0.9})
  )
  def test_more_tokens_than_a_query_block(self, rules):
    """259 ragged tokens on 263 slots, ordered and not, equal plain softmax."""
    tokens, slots = 259, 263
    q, k, v = draw(14, 1, 2, tokens, slots)
    ask = jnp.arange(4, slots, dtype=jnp.int32)[None]
    ask = jnp.concatenate([ask, jnp.where(ask < 99, ask, -1)])
    held = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (B, slots))
    scoring = kvjax.Scoring(SCALE, **rules)
    want, _ = plain_attention(
      {'key': q}, {'key': k, 'value': v}, ask, held, scoring
    )
    for ordered in (False, True):
      view = contiguous_view(
        {'key': k, 'value': v}, held[:, None], slots, ordered=ordered
      )
      got, _ = jax.jit(
        lambda view=view: kvjax.attend({'key': q}, ask, (view,), scoring)
      )()
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


class WeightsTest(chex.TestCase):
  @parameterized.parameters(None, 5)
  def test_weights_and_what_slots_received(self, block):
    q, k, v = draw(15)
    view = contiguous_view({'key': k, 'value': v}, HELD[:, None], S)
    scoring = kvjax.Scoring(SCALE)
    _, lse, weights = oracle.attention(q, POSITIONS, k, v, HELD, scale=SCALE)
    lse = jnp.asarray(lse, jnp.float32)
    got = received({'key': q}, POSITIONS, lse, view, scoring, block=block)
    np.testing.assert_allclose(got, weights.sum((2, 3)), rtol=1e-5, atol=1e-6)
    seen, held = attention_weights({'key': q}, POSITIONS, lse, view, scoring)
    np.testing.assert_allclose(seen, weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(held, HELD[:, None])


if __name__ == '__main__':
  absltest.main()
