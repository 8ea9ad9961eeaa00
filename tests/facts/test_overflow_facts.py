"""Facts about room: nothing is clamped, nothing overwritten, all is said."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.facts import tape, tiny

CONFIG = tiny.decoder()


def full(kind, batch=2):
  """Returns a cache of capacity 8 with 8 tokens in every row."""
  cache = kvjax.init_cache(CONFIG, batch, 8, kinds=kind)
  return tiny.feed(CONFIG, cache, tiny.tokens(batch, 8), (8,))[1]


def test_static_cache_out_of_bounds():
  """T-2, T-35: at capacity all is well; one token more raises ValueError.

  The peer raises IndexError, and CUDA asserts.
  """
  cache = full(kvjax.Dense())
  kvjax.check(cache)
  params, ids = tiny.params(CONFIG), tiny.tokens(2, 9)
  message = 'cache holds 8 of its capacity of 8'
  with pytest.raises(ValueError, match=message):
    kvjax.extend(CONFIG, params, cache, ids[:, :1])
  with pytest.raises(ValueError, match=message):
    kvjax.prefill(CONFIG, params, cache, ids[:, :1])
  empty = kvjax.init_cache(CONFIG, 2, 8)
  with pytest.raises(ValueError, match='9 tokens do not fit'):
    kvjax.prefill(CONFIG, params, empty, ids)


def test_wrong_sizes():
  """T-30: batch times 4, length times 4, half and then full: all refused.

  A wrong shape and a lack of room are a ValueError each.
  """
  params = tiny.params(CONFIG)
  cache = kvjax.init_cache(CONFIG, 2, 8)
  with pytest.raises(ValueError, match='it must be'):
    kvjax.extend(CONFIG, params, cache, tiny.tokens(8, 8))
  with pytest.raises(ValueError):
    kvjax.extend(CONFIG, params, cache, tiny.tokens(2, 32))
  _, cache = tiny.feed(CONFIG, cache, tiny.tokens(2, 4), (4,))
  with pytest.raises(ValueError):
    kvjax.extend(CONFIG, params, cache, tiny.tokens(2, 8))


def test_capacity_is_said_before_anything_is_traced():
  """B-10: a longer later call fails with numbers, without parameters even."""
  cache = kvjax.init_cache(CONFIG, 2, 8)
  with pytest.raises(ValueError, match='capacity of 8.*init_cache'):
    kvjax.prefill(CONFIG, {}, cache, tiny.tokens(2, 11))


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Dense(), id='dense'),
    pytest.param(kvjax.Paged(page=4), id='paged'),
  ],
)
def test_decode_beyond_the_end(kind):
  """B-9: beyond the end, once and again: dropped, flagged, NaN, all kept.

  A clamped write would have gone over the last token.
  """
  cache = full(kind)
  before = jax.tree.map(np.array, cache)
  for _ in range(3):
    logits, cache = kvjax.decode_step(
      CONFIG, tiny.params(CONFIG), cache, jnp.asarray([3, -1], jnp.int32)
    )
    assert np.isnan(logits).all(-1).tolist() == [True, False]
    assert cache.overflow.tolist() == [True, False]
    tiny.alike(cache.replace(overflow=before.overflow), before)
  logits, cache = kvjax.decode_step(
    CONFIG, tiny.params(CONFIG), cache, jnp.asarray([-1, -1], jnp.int32)
  )
  assert cache.overflow.tolist() == [True, False]
  assert np.isnan(logits).all(-1).tolist() == [True, False]
  with pytest.raises(ValueError, match=r'Rows \[0\].*capacity of 8'):
    kvjax.check(cache)


def test_decode_beyond_the_end_under_vmap():
  """B-9: the same under vmap, where clamped slices differ from plain ones."""
  cache = full(kvjax.Dense())
  room = kvjax.rewind(cache, [8, 7])
  rows = [kvjax.take(room, [i]) for i in range(2)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  step = functools.partial(kvjax.decode_step, CONFIG, tiny.params(CONFIG))
  logits, after = jax.vmap(step)(stacked, jnp.full((2, 1), 3, jnp.int32))
  assert after.overflow[:, 0].tolist() == [True, False]
  assert np.isnan(logits[:, 0]).any(-1).tolist() == [True, False]
  tiny.alike(
    jax.tree.map(lambda x: x[0, 0, :, :8], after.stores),
    jax.tree.map(lambda x: x[0, :, :8], cache.stores),
  )
  assert after.length[:, 0].tolist() == [8, 8]


@pytest.mark.parametrize('size', [1, 3, 8])
def test_a_chunk_that_does_not_fit_is_dropped_whole(size):
  """B-9: inside a jit too long a chunk by 1 or many writes not one token."""
  cache = kvjax.rewind(full(kvjax.Dense()), [8, 0])
  params = tiny.params(CONFIG)
  ids, lengths = tiny.tokens(2, 8, 3), np.full(2, size)
  run = jax.jit(lambda c, n: kvjax.extend(CONFIG, params, c, ids, n))
  logits, after = run(cache, lengths)
  assert after.length.tolist() == [8, size]
  assert after.overflow.tolist() == [True, False]
  assert np.isnan(logits[0]).all()
  first = lambda c: jax.tree.map(lambda x: x[0], (c.books, c.stores))
  tiny.alike(first(after), first(cache))


def test_no_token_before_the_start():
  """B-9: a position below 0 is no token: it is written nowhere."""
  kind = kvjax.Dense(slots=4)
  state = tape.feed(kind, tape.blank(kind), [1, 2, 3, 4], lengths=[0])
  assert tape.slots(state) == [-1] * 4
  assert np.isnan(state.store['value']).all()


def test_a_bound_is_kept_or_refused():
  """B-12: a requested bound is kept whatever the layer's own."""
  windowed = kvjax.Grouped(2, 1, 5, visibility=kvjax.Visibility(window=7))
  config = tiny.decoder(windowed, kvjax.Grouped(2, 1, 5))
  own = kvjax.init_cache(config, 1, 40)
  requested = kvjax.init_cache(config, 1, 40, kinds=kvjax.Ring(window=3))
  slots = lambda cache: [row.slots for row in kvjax.inspect(cache).rows]
  assert slots(own) == [7, 40]
  assert slots(requested) == [3, 3]
  with pytest.raises(ValueError, match='1 kinds for 2 layers'):
    kvjax.init_cache(config, 1, 40, kinds=[kvjax.Ring(window=3)])


def test_offsets_beyond_int32():
  """B-19: 2^33 bytes and row 262144 of batch 4096: sizes are Python ints."""
  config = tiny.decoder(kvjax.Grouped(8, 8, 128))
  cache = jax.eval_shape(
    lambda: kvjax.init_cache(config, 4096, 262144 + 1, 'bfloat16')
  )
  key = cache.stores[0]['key']
  assert key.shape == (4096, 8, 262145, 128)
  size = key.size * key.dtype.itemsize
  assert size == 4096 * 8 * 262145 * 128 * 2
  assert size > 2**40
  token = jax.ShapeDtypeStruct((4096,), jnp.int32)
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  logits, after = jax.eval_shape(
    lambda p, c, t: kvjax.decode_step(config, p, c, t), params, cache, token
  )
  assert logits.shape == (4096, tiny.VOCAB)
  kept = jax.tree.map(lambda a, b: a.shape == b.shape, cache, after)
  assert all(jax.tree.leaves(kept))
