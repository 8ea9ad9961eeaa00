"""Facts about masks and numbers: what a query sees, and what it cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.streams.view import contiguous_view, fresh_view
from kvjax.streams.visibility import Visibility
from tests.facts import tape, tiny

PLAIN = kvjax.Scoring(scale=0.3)


def ints(*x: int) -> jax.Array:
  """Returns int32 positions `[1, n]`."""
  return jnp.asarray([x], jnp.int32)


def draw(seed: int, *shape: int) -> jax.Array:
  """Returns normal numbers."""
  return jax.random.normal(jax.random.key(seed), shape)


@functools.partial(jax.jit, static_argnames='scoring')
def attend(q, positions, k, v, key_positions, scoring=PLAIN):
  """Attends over loose arrays; `key_positions` are `[B, S]`."""
  view = fresh_view({'key': k, 'value': v}, key_positions)
  return kvjax.attend({'key': q}, positions, (view,), scoring)


@functools.partial(jax.jit, static_argnums=(0, 4))
def read(kind, state, q, ask, scoring=PLAIN):
  """Attends to a tape, whose values are the keys as well."""
  views = [
    view.map(lambda s: {'key': s['value']} | s)
    for view in kind.views(state.book, state.store, state.length)
  ]
  return kvjax.attend({'key': q}, ask, views, scoring)


@pytest.mark.parametrize(
  ('offset', 'want'),
  [
    (0, [1, 2, 3, 3, 3]),
    (1, [2, 3, 3, 3, 3]),
    (2, [3, 3, 3, 3, 3]),
  ],
)
def test_window_row_sums(offset, want):
  """T-19: 5 queries, window 3, at offsets 0, 1, 2."""
  queries = jnp.arange(offset, offset + 5, dtype=jnp.int32)[:, None]
  keys = jnp.arange(offset + 5, dtype=jnp.int32)[None]
  seen = np.asarray(Visibility(window=3).sees(queries, keys))
  assert seen.sum(1).tolist() == want


def test_window_inside_a_ring():
  """T-20: 8 slots, window 5, after 10 and one more: which slots are seen.

  The peer fills its 8 slots from 0 again after a long prompt; here a slot
  is the position modulo 8, so the same pattern stands two slots on.
  """
  kind = kvjax.Ring(window=5, slack=3).bind(99)
  state = tape.feed(kind, tape.blank(kind), np.arange(10))
  wants = ('TFFFTTTT', 'TTFFFTTT')
  for query, want in zip((10, 11), wants, strict=True):
    state = tape.feed(kind, state, [query])
    rule = kind.visible_through(Visibility())
    seen = rule.sees(np.int32(query), state.book.positions[0, 0])
    want = np.roll(np.asarray(list(want)) == 'T', 2)
    assert np.asarray(seen).tolist() == want.tolist()


def test_causal_is_aligned_at_the_end():
  """T-34, B-17: 2 queries on 5 keys and 5 on 2; rows before any key are 0."""
  q, k, v = draw(0, 1, 1, 1, 2, 3), draw(1, 1, 1, 5, 3), draw(2, 1, 1, 5, 7)
  out, lse = attend(q, ints(3, 4), k, v, ints(0, 1, 2, 3, 4))
  scores = np.asarray(jnp.einsum('BKGTH,BKSH->BKGTS', q, k))[0, 0, 0] * 0.3
  scores[0, 4] = -np.inf
  weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  tiny.close(out[0, 0, 0], weights @ np.asarray(v)[0, 0], 1e-6)
  q = draw(3, 1, 1, 1, 5, 3)
  out, lse = attend(
    q, ints(-3, -2, -1, 0, 1), k[:, :, :2], v[:, :, :2], ints(0, 1)
  )
  assert (np.asarray(out)[..., :3, :] == 0).all()
  assert (np.asarray(lse)[..., :3] == -np.inf).all()
  tiny.close(out[0, 0, 0, 3], v[0, 0, 0], 1e-6)


def test_two_large_scores():
  """T-39, B-15: two keys that score -46000, V = 1: exactly 1, lse right.

  A finite sentinel such as -5e4 would take part in that softmax.
  """
  q = jnp.ones((1, 1, 1, 1, 1))
  k = jnp.full((1, 1, 3, 1), -524288.0)
  v = jnp.asarray([1.0, 1.0, 5.0])[None, None, :, None]
  scale = 46000 / 524288
  out, lse = attend(q, ints(1), k, v, ints(0, 1, 2), kvjax.Scoring(scale))
  assert float(out[0, 0, 0, 0, 0]) == 1.0
  np.testing.assert_allclose(lse, -46000 + np.log(2), rtol=1e-5)


def test_a_row_without_keys():
  """B-13: nothing seen gives 0 and -inf: not NaN, and not the mean of V."""
  q, k = draw(0, 2, 1, 1, 1, 3), draw(1, 2, 1, 5, 3)
  key_positions = jnp.asarray([[-1] * 5, [0, -1, -1, -1, -1]], jnp.int32)
  ask = jnp.asarray([[4], [4]], jnp.int32)
  out, lse = attend(q, ask, k, jnp.ones((2, 1, 5, 2)), key_positions)
  assert (np.asarray(out[0]) == 0).all()
  assert (np.asarray(lse[0]) == -np.inf).all()
  tiny.close(out[1], jnp.ones_like(out[1]), 1e-6)


def test_masks_are_booleans():
  """B-14: a key hidden by causality, window and chunk at once, in bfloat16.

  Added as two finfo.min they would make -inf, and the softmax NaN.
  """
  rule = Visibility(window=2, chunk=3)
  q = draw(0, 1, 1, 1, 1, 4).astype(jnp.bfloat16)
  k, v = (draw(i, 1, 1, 7, 4).astype(jnp.bfloat16) for i in (1, 2))
  key_positions = ints(*range(7))
  scoring = kvjax.Scoring(0.3, visibility=rule)
  out, _ = attend(q, ints(3), k, v, key_positions, scoring)
  tiny.close(out[0, 0, 0, 0], v[0, 0, 3].astype(jnp.float32), 1e-6)


@pytest.mark.parametrize(
  'latent',
  [pytest.param(False, id='mla'), pytest.param(True, id='latent_as_value')],
)
def test_poison_past_the_last_page(latent):
  """T-38: NaN behind the last page's length reaches no result, MLA too."""
  kind = kvjax.Paged(page=4).bind(8)
  state = tape.feed(kind, tape.blank(kind, 2), np.arange(1, 7), [6, 3])
  scoring = kvjax.Scoring(0.0, value='key' if latent else 'value')
  q, ask = jnp.ones((2, 1, 1, 1, 1)), state.length[:, None] - 1
  out, lse = read(kind, state, q, ask, scoring)
  tiny.close(out.reshape(-1), [3.5, 2.0], 1e-6)
  tiny.close(lse.reshape(-1), np.log([6, 3]), 1e-6)


@pytest.mark.parametrize('kind', tiny.KINDS.values(), ids=tiny.KINDS)
def test_poison_in_every_unused_slot(kind):
  """B-16: with NaN where no token is, each kind reads what it holds."""
  kind, count = kind.bind(9), 0
  state = tape.blank(kind, batch=2, heads=3)
  for size in (2, 1, 1):
    state = tape.feed(kind, state, np.arange(count, count + size), [size, 0])
    count += size
    q = jnp.zeros((2, 3, 1, 1, 1))
    out, lse = read(kind, state, q, state.length[:, None] - 1)
    # Masked scores of NaN keys would show in the log-sum-exp.
    tiny.close(out[0].reshape(-1), [(count - 1) / 2] * 3, 1e-6)
    assert (np.asarray(lse)[1] == -np.inf).all()
    assert (np.asarray(out)[1] == 0).all()


@pytest.mark.parametrize(
  ('batch', 'tokens', 'heads'),
  [
    (1, 1, (1, 1)),
    (3, 1, (9, 3)),
    (3, 2, (8, 1)),
    (2, 4, (6, 2)),
  ],
)
def test_ragged_pages(batch, tokens, heads):
  """T-36: lengths from 0 on, NaN in unused slots, stale pages in the pool.

  Pages that a row gave back keep their old positions and streams; a table
  entry of none is -1, so nothing of them is read. An empty row is 0 with a
  log-sum-exp of -inf (FlashMLA says +inf, FlashInfer -inf).
  """
  n, kv = heads
  kind = kvjax.Paged(page=4).bind(20)
  lengths = np.asarray([11, 0, 5][:batch], np.int32)
  state = tape.feed(kind, tape.blank(kind, batch, kv), np.arange(12))
  zeros = jnp.zeros(batch, jnp.int32)
  book, _, _ = kind.rewind(state.book, state.length, zeros)
  state = state.replace(length=zeros, book=book)
  state = tape.feed(kind, state, np.arange(1, 13), lengths)
  q = jnp.zeros((batch, kv, n // kv, tokens, 1))
  steps = jnp.arange(tokens, dtype=jnp.int32)[None]
  count = state.length[:, None]
  ask = jnp.where(count > 0, count - tokens + steps, -1)
  out, lse = read(kind, state, q, ask)
  for row, length in enumerate(lengths):
    for t in range(tokens):
      seen = length - tokens + 1 + t if length else 0
      mean, logs = ((seen + 1) / 2, np.log(seen)) if seen else (0, -np.inf)
      np.testing.assert_allclose(out[row, :, :, t], mean, rtol=1e-6)
      np.testing.assert_allclose(lse[row, :, :, t], logs, rtol=1e-6)


@pytest.mark.parametrize(
  'share',
  [
    pytest.param(1.0, id='all'),
    pytest.param(0.0, id='none'),
    pytest.param(0.5, id='some'),
  ],
)
def test_merge_states(share):
  """T-41: where a second state is empty the first stays, else they merge."""
  q = draw(0, 5, 1, 1, 1, 3)
  k, v = draw(1, 5, 1, 7, 3), draw(2, 5, 1, 7, 2)
  key_positions = jnp.broadcast_to(jnp.arange(7, dtype=jnp.int32)[None], (5, 7))
  rows = np.random.default_rng(0).random(5) < share
  second = jnp.where(rows[:, None], key_positions[:, 4:], -1)
  ask = jnp.full((5, 1), 6, jnp.int32)
  first = attend(q, ask, k[:, :, :4], v[:, :, :4], key_positions[:, :4])
  more = attend(q, ask, k[:, :, 4:], v[:, :, 4:], second)
  out, lse = kvjax.merge([first, more])
  whole = attend(q, ask, k, v, key_positions)
  for got, a, b in zip((out, lse), whole, first, strict=True):
    shape = (5,) + (1,) * (a.ndim - 1)
    tiny.close(got, np.where(rows.reshape(shape), a, b), 1e-6)


def test_contiguous_view_hides_what_it_does_not_hold():
  """B-16: keys and values of NaN in a slot that is empty change nothing."""
  k, v = draw(0, 1, 2, 7, 3), draw(1, 1, 2, 7, 5)
  key_positions = jnp.asarray([[[0, 1, -1, 2, -1, 3, -1]]], jnp.int32)
  empty = (key_positions < 0)[..., None]
  spoil = lambda x: jnp.where(empty, jnp.nan, x)
  q, ask = draw(2, 1, 2, 3, 1, 3), ints(3)
  found = [
    kvjax.attend(
      {'key': q},
      ask,
      (contiguous_view({'key': f(k), 'value': f(v)}, key_positions, 7),),
      PLAIN,
      block=3,
    )
    for f in (lambda x: x, spoil)
  ]
  tiny.alike(*found)
