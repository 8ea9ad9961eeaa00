"""Facts about rows: each is what it would be alone, wherever it stands."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tiny

CONFIG = tiny.decoder()
PROMPTS = (7, 4)


def refill(cache, seed=0):
  """Returns a cache with every leaf random: for moves, not for attention."""
  rng = np.random.default_rng(seed)

  def draw(x):
    return jnp.asarray(rng.integers(0, 100, x.shape).astype(x.dtype))

  return jax.tree.map(draw, cache)


@functools.cache
def ran(kind, padding='right', width=8, row=None):
  """Returns prompt logits, greedy tokens and the cache after the prompt."""
  ids, lengths = tiny.tokens(2, 8), np.asarray(PROMPTS)
  if row is not None:
    ids, lengths = ids[row : row + 1], lengths[row : row + 1]
  batch = len(lengths)
  places = np.arange(width)[None] - (width - lengths[:, None]) * (
    padding == 'left'
  )
  places = np.clip(places, 0, 7)
  padded = jnp.take_along_axis(ids, jnp.asarray(places), axis=1)
  cache = kvjax.init_cache(CONFIG, batch, 40, kinds=kind)
  logits, cache = kvjax.prefill(
    CONFIG, tiny.params(CONFIG), cache, padded, lengths, padding=padding
  )
  tokens, _ = kvjax.generate(
    CONFIG, tiny.params(CONFIG), cache, logits, 6, donate=False
  )
  return np.asarray(logits), np.asarray(tokens), cache


@pytest.mark.parametrize('kind', tiny.KINDS.values(), ids=tiny.KINDS)
def test_extra_left_padding(kind):
  """T-10: padded on the left to 32, every kind generates the same."""
  logits, tokens, _ = ran(kind)
  padded_logits, padded, _ = ran(kind, 'left', 32)
  if kind.name != 'bounded':  # survivors depend on the pieces of a call
    tiny.close(padded_logits, logits)
    np.testing.assert_array_equal(padded, tokens)
  assert (padded >= 0).all()


@pytest.mark.parametrize('kind', tiny.KINDS.values(), ids=tiny.KINDS)
def test_batch_matches_single(kind):
  """T-11, T-26, A-1: two prompts of unequal length: each row as if alone.

  A shared position would be right for the longest row only.
  """
  logits, tokens, _ = ran(kind)
  for row in range(2):
    alone_logits, alone, _ = ran(kind, row=row)
    tiny.close(logits[row], alone_logits[0])
    np.testing.assert_array_equal(tokens[row], alone[0])


def test_grown_eager_and_compiled():
  """T-13: uncached and growing, cached and eager, cached and compiled."""
  logits, tokens, cache = ran(kvjax.Dense(), row=0)
  params, ids = tiny.params(CONFIG), tiny.tokens(2, 8)[:1, :7]
  for i in range(3):
    grown = jnp.concatenate([ids, tokens[:, :i]], axis=1)
    want = kvjax.forward(CONFIG, params, grown)[:, -1]
    assert int(want.argmax()) == tokens[0, i]
  eager, token = cache, jnp.asarray(logits.argmax(-1), jnp.int32)
  with jax.disable_jit():
    for i in range(2):
      assert int(token[0]) == tokens[0, i]
      found, eager = kvjax.decode_step(
        CONFIG, params, eager, token, donate=False
      )
      token = found.argmax(-1).astype(jnp.int32)


def test_extract_mid_prefill():
  """C-36: a row taken between two pieces of a prompt has no padding in it."""
  ids = tiny.tokens(2, 8)
  cache = kvjax.init_cache(CONFIG, 2, 19)
  params = tiny.params(CONFIG)
  _, cache = kvjax.extend(CONFIG, params, cache, ids, [7, 4])
  row = kvjax.take(cache, [1])
  assert row.length.tolist() == [4]
  got, _ = tiny.follow(CONFIG, row, ids[1:, 4:])
  want = kvjax.forward(CONFIG, params, ids)[1:, 4:]
  tiny.close(got, want)


@pytest.mark.parametrize('size', [1, 3, 8])
def test_last_token_again(size):
  """C-41, C-37: a prompt hit whole is fed its last token again, at least.

  That gives its logits, to 1e-5 whatever the piece; a call without a token
  has none to give, and says NaN.
  """
  ids, params = tiny.tokens(2, 8), tiny.params(CONFIG)
  cache = kvjax.init_cache(CONFIG, 2, 19)
  whole, cache = tiny.feed(CONFIG, cache, ids, (8,))
  back = kvjax.rewind(cache, 8 - size)
  got, back = tiny.feed(CONFIG, back, ids[:, 8 - size :], (size,))
  tiny.close(got[:, -1], whole[:, -1])
  none, after = kvjax.prefill(
    CONFIG, params, cache, ids[:, :1], [0, 0], donate=False
  )
  assert np.isnan(none).all()
  assert not np.asarray(after.overflow).any()
  tiny.alike(after, cache)


@pytest.mark.parametrize(
  ('variant', 'codec'),
  [
    pytest.param(tiny.GQA, None, id='gqa'),
    pytest.param(tiny.GQA, kvjax.Int8(), id='gqa_int8'),
    pytest.param(tiny.MLA, None, id='mla'),
    pytest.param(tiny.MLA, kvjax.Int8(), id='mla_int8'),
  ],
)
def test_reorder(variant, codec):
  """T-9, C-42: beams reordered: every leaf of ten layers, by axis not name.

  Positions, lengths, flags and scales move with the streams.
  """
  kinds = [None, kvjax.Ring(window=5)] * 5
  config = tiny.decoder(*[variant] * 10)
  cache = refill(kvjax.init_cache(config, 4, 7, kinds=kinds, codec=codec))
  rows = np.random.default_rng(0).integers(0, 4, 4)
  got = kvjax.take(cache, rows)
  tiny.alike(got, jax.tree.map(lambda x: x[rows], cache))


def test_merge_and_extract():
  """T-27: two unequal caches merged, and each taken out again: exact."""
  a, b = (
    refill(kvjax.init_cache(CONFIG, n, 7), seed) for n, seed in ((1, 0), (2, 1))
  )
  both = kvjax.concat([a, b])
  tiny.alike(kvjax.take(both, [0]), a)
  tiny.alike(kvjax.take(both, [1, 2]), b)


def test_extend_a_padded_batch():
  """T-25: left padding [2, 1, 2] of 8 joined by [3, 0] of 4: [6, 7, 6, 1, 4].

  There is no pad to remember: positions count tokens, so every row goes on
  as it would alone.
  """
  params = tiny.params(CONFIG)
  parts, lengths = [], ([6, 7, 6], [1, 4])
  for seed, (n, width) in enumerate(((3, 8), (2, 4))):
    cache = kvjax.init_cache(CONFIG, n, 19)
    ids = tiny.tokens(n, width, seed)
    parts.append(
      kvjax.prefill(CONFIG, params, cache, ids, lengths[seed], padding='left')[
        1
      ]
    )
  both = kvjax.concat(parts)
  assert both.length.tolist() == [6, 7, 6, 1, 4]
  slot_positions = np.asarray(both.books[0].positions)[:, 0]
  assert (slot_positions >= 0).sum(1).tolist() == [6, 7, 6, 1, 4]
  more = tiny.tokens(5, 1, seed=9)
  got, _ = tiny.follow(CONFIG, both, more)
  alone = kvjax.take(both, [3])
  want, _ = tiny.follow(CONFIG, alone, more[3:4])
  tiny.close(got[3:4], want)
  want = jnp.concatenate([tiny.tokens(2, 4, 1)[:1, 3:], more[3:4]], axis=1)
  want = kvjax.forward(CONFIG, params, want)[:, 1:]
  tiny.close(got[3:4], want)


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Dense(), id='dense'),
    pytest.param(kvjax.Paged(page=4), id='paged'),
  ],
)
def test_join_with_an_empty_cache(kind):
  """C-38: empty joined to non-empty, both orders: sizes, lengths, results."""
  empty = kvjax.init_cache(CONFIG, 1, 11, kinds=kind)
  ids = tiny.tokens(2, 6)
  _, filled = tiny.feed(
    CONFIG, kvjax.init_cache(CONFIG, 2, 11, kinds=kind), ids, (6,)
  )
  want, _ = tiny.feed(CONFIG, filled, ids, (2,))
  for at, parts in (
    (slice(1, 3), [empty, filled]),
    (slice(0, 2), [filled, empty]),
  ):
    both = kvjax.concat(parts)
    assert both.batch_size == 3
    assert both.length[at].tolist() == [6, 6]
    assert int(both.length.sum()) == 12
    more = jnp.zeros((3, 2), jnp.int32).at[at].set(ids[:, :2])
    got, _ = tiny.feed(CONFIG, both, more, (2,))
    tiny.close(got[at], want)
