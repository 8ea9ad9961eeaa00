"""Facts about positions: capacity, tokens seen and position are three."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.attention import rotary as rotaries
from kvjax.attention.rotary import Rotary, rotary_table
from kvjax.models.decoder import embed
from tests.facts import tiny

YARN = Rotary(6, scaling=rotaries.Yarn(factor=4.0, original=8))


def streams(config, params, ids, at):
  """Returns a one-layer model's queries and streams, rotated to `at [T]`."""
  variant = config.layers[0].attention
  layer = params['layers'][0]
  at = jnp.asarray(at, jnp.int32)[None]
  x = embed(config, params, ids, at)
  x = config.norm(layer['attention_norm'], x)
  table = rotary_table(variant.rotary, at, 99)
  queries = variant.project_queries(layer['attention'], x, table)
  return queries, variant.project_streams(layer['attention'], x, table)


def step_weights(config, cache, token):
  """Feeds one token to one row; returns weights by position `[K, G, P]`."""
  _, cache, ((weights, slot_positions),) = kvjax.extend(
    config, tiny.params(config), cache, token, attention_layers=(0,)
  )
  weights = np.asarray(weights)[0, :, 0]
  slot_positions = np.asarray(slot_positions)[0]
  heads = np.broadcast_to(slot_positions, (3, slot_positions.shape[-1]))
  found = np.zeros((3, 2, 40))
  for k in range(3):
    live = heads[k] >= 0
    found[k][:, heads[k][live]] = weights.reshape(3, 2, -1)[k][:, live]
  return found, cache


def softmax(scores: np.ndarray) -> np.ndarray:
  """Returns softmax over the last axis."""
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  return scores / scores.sum(-1, keepdims=True)


def test_evicted_cache_equals_attention_to_survivors():
  """A-2: after evictions queries rotate where they are, not where rows end.

  Heavy hitters chosen by a second program, in NumPy, head by head.
  """
  config, budget = tiny.decoder(), 6
  params, ids = tiny.params(config), tiny.tokens(1, 17)
  queries, left = streams(config, params, ids, np.arange(17))
  q, k = np.asarray(queries['key'])[0], np.asarray(left['key'])[0]
  alive, total = [[] for _ in range(3)], np.zeros((3, 40))
  kind = kvjax.Bounded(budget, kvjax.HeavyHitters(recent=0), protect=(0, 0))
  cache = kvjax.init_cache(config, 1, 17, kinds=kind)
  for t in range(17):
    got, cache = step_weights(config, cache, ids[:, t : t + 1])
    want = np.zeros((3, 2, 40))
    for head in range(3):
      alive[head].append(t)
      keys = k[head][alive[head]]
      want[head][:, alive[head]] = softmax(q[head, :, t] @ keys.T * 10**-0.5)
      total[head] += want[head].sum(0)
      if len(alive[head]) > budget - 1:
        alive[head].remove(min(alive[head], key=lambda p, h=head: total[h, p]))
    tiny.close(got, want)
  assert cache.length.tolist() == [17]


@pytest.mark.parametrize(
  'rotary', [pytest.param(Rotary(6), id='paper'), pytest.param(YARN, id='yarn')]
)
def test_renumbered_sinks_use_the_models_own_table(rotary):
  """A-3: positions inside the cache, by the scaled frequencies of the model.

  The second formula rotates every key again to its rank in the cache, as
  StreamingLLM does; none is ever rotated twice here.
  """
  config = tiny.decoder(dataclasses.replace(tiny.GQA, rotary=rotary))
  params, ids = tiny.params(config), tiny.tokens(1, 17)
  kind = kvjax.Sinks(sinks=2, window=5, renumber=True)
  cache = kvjax.init_cache(config, 1, 17, kinds=kind)
  for t in range(17):
    got, cache = step_weights(config, cache, ids[:, t : t + 1])
    kept = [p for p in range(t + 1) if p < 2 or t - p < 5]
    at = np.zeros(17, np.int32)
    at[kept] = np.arange(len(kept))
    queries, left = streams(config, params, ids, at)
    q, k = np.asarray(queries['key'])[0], np.asarray(left['key'])[0]
    want = np.zeros((3, 2, 40))
    scores = np.einsum('kgh,ksh->kgs', q[:, :, t], k[:, kept]) * 10**-0.5
    want[:, :, kept] = softmax(scores)
    tiny.close(got, want, 1e-5)


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Ring(window=5), id='ring'),
    pytest.param(kvjax.Sinks(sinks=2, window=5), id='sinks'),
  ],
)
def test_every_key_sits_where_its_book_says(kind):
  """A-4: after many evictions a stored key is rotated to its slot's entry."""
  config = tiny.decoder()
  ids = tiny.tokens(1, 19)
  cache = kvjax.init_cache(config, 1, 19, kinds=kind)
  _, cache = tiny.follow(config, cache, ids)
  _, left = streams(config, tiny.params(config), ids, np.arange(19))
  slot_positions = np.asarray(cache.books[0].positions)[0, 0]
  assert (slot_positions >= 0).all()
  for name, x in left.items():
    tiny.close(cache.stores[0][name][0], x[0][:, slot_positions], 1e-6)


def test_positions_are_integers_in_a_narrow_model():
  """A-6: in bfloat16 the first wrong integer would be 257; keys agree.

  The table of a bfloat16 model tells 256 from 257, and a key is the same
  number in the same dtype from prefill and from decode.
  """
  config = tiny.decoder(dtype='bfloat16')
  params, ids = tiny.params(config), tiny.tokens(1, 8)
  cache = kvjax.init_cache(config, 1, 300)
  assert cache.books[0].positions.dtype == jnp.int32
  assert cache.length.dtype == jnp.int32
  at = jnp.asarray([[256, 257, 258]], jnp.int32)
  cos, _ = rotary_table(Rotary(6), at, 0)
  want = np.cos(np.asarray([256.0, 257.0, 258.0]))
  np.testing.assert_allclose(cos[0, :, 0], want, atol=1e-4)
  late = cache.replace(length=jnp.full(1, 257, jnp.int32))
  _, whole = kvjax.extend(config, params, late, ids)
  _, steps = tiny.follow(config, late, ids)
  for name in ('key', 'value'):
    assert steps.stores[0][name].dtype == jnp.bfloat16
    a, b = (np.asarray(c.stores[0][name], np.float32) for c in (whole, steps))
    np.testing.assert_allclose(a, b, rtol=2**-7, atol=1e-6)


def test_long_rope_in_a_ragged_batch():
  """A-7: rows on both sides of the switch share the planned length's table.

  The table is chosen once for the cache: a row that grows over the switch
  keeps the rotation of the keys it has, and equals itself alone.
  """
  long = rotaries.LongRope((1.0, 1.1, 1.3), (2.0, 3.0, 5.0), 8, 1.2)
  rotary = dataclasses.replace(tiny.GQA.rotary, scaling=long)
  config = tiny.decoder(dataclasses.replace(tiny.GQA, rotary=rotary))
  params, ids = tiny.params(config), tiny.tokens(2, 16)
  lengths = np.asarray([5, 11])
  cache = kvjax.init_cache(config, 2, 16)
  logits, cache = kvjax.prefill(config, params, cache, ids, lengths)
  for row, length in enumerate(lengths):
    want = kvjax.forward(config, params, ids[row : row + 1], rotary_length=16)
    tiny.close(logits[row], want[0, length - 1])
    more = ids[row, length : length + 5]
    got, _ = tiny.follow(config, kvjax.take(cache, [row]), more[None])
    tiny.close(got[0], want[0, length : length + 5])
  short = kvjax.forward(config, params, ids, rotary_length=8)
  whole = kvjax.forward(config, params, ids, rotary_length=16)
  assert float(jnp.abs(short - whole).max()) > 1e-3


def test_distances_survive_the_wrap():
  """A-8: right after a wrap distances are of positions, not of slots."""
  config, kind = tiny.decoder(), tiny.KINDS['ring']
  ids = tiny.tokens(1, 7)
  cache = kvjax.init_cache(config, 1, 19, kinds=kind)
  _, cache = tiny.follow(config, cache, ids)
  slot_positions = np.asarray(cache.books[0].positions)[0, 0]
  assert slot_positions.tolist() == [5, 6, 2, 3, 4]
  queries, left = streams(config, tiny.params(config), ids, np.arange(7))
  q, k = np.asarray(queries['key'])[0], np.asarray(left['key'])[0]
  stored = np.asarray(cache.stores[0]['key'])[0]
  tiny.close(
    np.einsum('kgh,ksh->kgs', q[:, :, 6], stored),
    np.einsum('kgh,ksh->kgs', q[:, :, 6], k[:, slot_positions]),
  )


def test_single_token_decode_keeps_its_window():
  """B-18: decode far past the window equals forward with the window mask."""
  kind = tiny.KINDS['ring']
  config = tiny.decoder()
  ids = tiny.tokens(2, 19)
  cache = kvjax.init_cache(config, 2, 19, kinds=kind)
  got, _ = tiny.follow(config, cache, ids)
  want = kvjax.forward(tiny.as_seen(config, kind), tiny.params(config), ids)
  tiny.close(got, want)


def test_chunked_local_attention():
  """T-29, B-11: chunks of 4, 12 tokens one at a time equal one pass.

  The default cache of such a layer is smaller than the sequence and drops no
  token that is still read.
  """
  variant = kvjax.Grouped(
    6, 3, 10, 7, rotary=kvjax.Rotary(6), visibility=kvjax.Visibility(chunk=4)
  )
  config = tiny.decoder(variant)
  ids = tiny.tokens(2, 12)
  cache = kvjax.init_cache(config, 2, 12)
  assert cache.stores[0]['key'].shape[2] == 4
  got, _ = tiny.follow(config, cache, ids)
  tiny.close(got, kvjax.forward(config, tiny.params(config), ids))
