"""Facts about what a kind holds and offers, token by token."""

import jax
import numpy as np
import pytest

import kvjax
from kvjax.streams.visibility import Visibility
from tests.facts import tape, tiny

FULL = Visibility()


def values(pairs: dict[int, float]) -> list[float]:
  """Returns the values that a tape holds, by position."""
  return [pairs[p] for p in sorted(pairs)]


def test_dense_fills_in_order():
  """T-1: capacity 4, two of four tokens real, then one and one more.

  Where the peer keeps zeros in what is unused, a slot holds no position.
  """
  kind = kvjax.Dense(slots=4)
  state = tape.feed(kind, tape.blank(kind), [1, 2, 0, 0], lengths=[2])
  assert tape.slots(state) == [0, 1, -1, -1]
  state = tape.feed(kind, state, [3])
  assert tape.stored(kind, state) == {0: 1, 1: 2, 2: 3}
  state = tape.feed(kind, state, [4])
  assert values(tape.stored(kind, state)) == [1, 2, 3, 4]


def test_window_drops_the_oldest():
  """T-3: window 4 of [1, 2, 3, 4] and then 5 reads [2, 3, 4, 5]."""
  kind = kvjax.Ring(window=4).bind(9)
  state = tape.feed(kind, tape.blank(kind), [1, 2, 3, 4])
  state = tape.feed(kind, state, [5])
  assert values(tape.stored(kind, state)) == [2, 3, 4, 5]
  assert tape.seen(kind, state, 4, FULL) == [2, 3, 4, 5]


def test_long_prompt_keeps_its_end():
  """T-4: a prompt of 6 in a window of 4 keeps [3, 4, 5, 6]."""
  kind = kvjax.Ring(window=4).bind(9)
  state = tape.feed(kind, tape.blank(kind), [1, 2, 3, 4, 5, 6])
  assert values(tape.stored(kind, state)) == [3, 4, 5, 6]


def test_hybrid_offers_more_than_it_stores():
  """T-5: full of 4 and a window of 2: [20, 30] stored, 10 still read."""
  full, ring = kvjax.Dense(slots=4), kvjax.Ring(window=2).bind(9)
  a = tape.feed(full, tape.blank(full), [1, 2, 3])
  b = tape.feed(ring, tape.blank(ring), [10, 20, 30])
  assert values(tape.stored(ring, b)) == [20, 30]
  assert values(tape.offered(b)) == [10, 20, 30]
  a, b = tape.feed(full, a, [5]), tape.feed(ring, b, [50])
  assert values(tape.stored(full, a)) == [1, 2, 3, 5]
  assert values(tape.stored(ring, b)) == [30, 50]


def test_burst_into_a_full_window():
  """T-6: two tokens into a full window of 2: [50, 60, 70] are read.

  Old slots are offered whole; the mask, not the kind, hides 30.
  """
  kind = kvjax.Ring(window=2).bind(9)
  state = tape.feed(kind, tape.blank(kind), [10, 20, 30])
  state = tape.feed(kind, state, [50])
  state = tape.feed(kind, state, [60, 70])
  assert values(tape.stored(kind, state)) == [60, 70]
  read = {v for q in (4, 5) for v in tape.seen(kind, state, q, FULL)}
  assert read == {50, 60, 70}


@pytest.mark.parametrize(
  'kv',
  [
    pytest.param(32, id='mha'),
    pytest.param(4, id='gqa'),
    pytest.param(1, id='mqa'),
  ],
)
def test_shapes(kv):
  """T-7: 32 heads on 32, 4 or 1 kv heads: leaves [1, kv, 10, 128]."""
  config = tiny.decoder(kvjax.Grouped(32, kv, 128))
  cache = kvjax.init_cache(config, 1, 10)
  for name in ('key', 'value'):
    assert cache.stores[0][name].shape == (1, kv, 10, 128)


def test_layers_do_not_mix():
  """T-8: another projection in layer 1 changes layer 1's streams alone."""
  config = tiny.decoder(tiny.GQA, tiny.GQA)
  params, ids = tiny.params(config), tiny.tokens(1, 5)
  cache = kvjax.init_cache(config, 1, 7)
  _, one = kvjax.extend(config, params, cache, ids)
  layers = list(params['layers'])
  old = layers[1]['attention']
  new = old | {'key': -old['key']}
  layers[1] = layers[1] | {'attention': new}
  _, two = kvjax.extend(config, params | {'layers': layers}, cache, ids)
  tiny.alike(one.stores[0], two.stores[0])
  tiny.alike(one.stores[1]['value'], two.stores[1]['value'])
  tiny.alike(one.stores[1]['key'], -two.stores[1]['key'])


def test_growth_boundary():
  """T-15: 1 token, then 256: all exact, and 257 seen."""
  kind = kvjax.Dense(slots=260)
  state = tape.feed(kind, tape.blank(kind), [7])
  state = tape.feed(kind, state, np.arange(256))
  assert values(tape.stored(kind, state)) == [7, *range(256)]
  assert state.length.tolist() == [257]


def test_ring_cycles():
  """T-16: 8 slots, updates of 2, 5, 4, then ten singles, cyclically.

  A slot is the position modulo slots, so the first single, at 11, takes 3.
  """
  kind, count = kvjax.Ring(window=8).bind(99), 0
  state = tape.blank(kind)
  for size in (2, 5, 4) + (1,) * 10:
    state = tape.feed(kind, state, np.arange(count, count + size))
    count += size
    if size == 1:
      assert tape.slots(state)[(count - 1) % 8] == count - 1
    want = {p: p for p in range(max(count - 8, 0), count)}
    assert tape.stored(kind, state) == want


def test_sinks_stay_while_the_ring_cycles():
  """T-17: 2 sinks in 8 slots, 20 at once, ten singles cycle slots 2 to 7."""
  kind = kvjax.Sinks(sinks=2, window=6).bind(99)
  state = tape.feed(kind, tape.blank(kind), np.arange(20))
  for i in range(10):
    before = tape.slots(state)
    state = tape.feed(kind, state, [20 + i])
    after = tape.slots(state)
    changed = [s for s in range(8) if before[s] != after[s]]
    assert changed == [2 + (20 + i - 2) % 6]
    assert after[:2] == [0, 1]
    assert state.length.tolist() == [21 + i]


def test_chat_turns():
  """T-18: 18 slots, turns of 8, 1, 2, 3, 6, 2: lengths, offsets, newest."""
  kind, count = kvjax.Ring(window=18).bind(99), 0
  state = tape.blank(kind)
  sizes, wants = (8, 1, 2, 3, 6, 2), (8, 9, 11, 14, 18, 18)
  for size, want in zip(sizes, wants, strict=True):
    state = tape.feed(kind, state, np.arange(count, count + size))
    count += size
    pairs = tape.stored(kind, state)
    assert (len(pairs), state.length.tolist()) == (want, [count])
    assert values(pairs)[-size:] == [*range(count - size, count)]


def test_sinks_tables():
  """T-51: (a) 4 sinks of 12 slots, positions 12-14; (b) 2 of 8, position 8.

  Capacity 12 alone would refuse 15 tokens, as it must without a window; the
  window of 8 is what makes room.
  """
  kind = kvjax.Sinks(sinks=4, window=8).bind(99)
  state = tape.feed(kind, tape.blank(kind), np.arange(12))
  state = tape.feed(kind, state, [12, 13, 14])
  want = [0, 1, 2, 3, 12, 13, 14, 7, 8, 9, 10, 11]
  assert tape.slots(state) == want
  kind = kvjax.Sinks(sinks=2, window=6).bind(99)
  state = tape.feed(kind, tape.blank(kind), np.arange(8))
  state = tape.feed(kind, state, [8])
  assert tape.slots(state) == [0, 1, 8, 3, 4, 5, 6, 7]


def test_write_across_the_end():
  """T-53: 5 tokens at position 13 of 16 slots go to 13, 14, 15, 0, 1."""
  kind = kvjax.Ring(window=12, slack=4).bind(99)
  state = tape.feed(kind, tape.blank(kind), np.arange(13))
  before = np.asarray(state.store['value'])
  state = tape.feed(kind, state, np.arange(13, 18))
  after = np.asarray(state.store['value'])
  changed = np.flatnonzero(~np.isclose(before, after, equal_nan=True))
  assert changed.tolist() == [0, 1, 13, 14, 15]
  assert after[0, 0, changed, 0].tolist() == [16, 17, 13, 14, 15]


@pytest.mark.parametrize(
  ('size', 'slack'),
  [
    pytest.param(size, slack, id=f'{size}_slack_{slack}')
    for size in (1, 2, 3, 4, 5, 7)
    for slack in (0, 2)
  ],
)
def test_bursts_lose_no_key(size, slack):
  """C-31: in bursts of any size every query reads its whole window.

  What is offered and the positions its mask is made of are one record.
  """
  kind, count = kvjax.Ring(window=4, slack=slack).bind(99), 0
  state = tape.blank(kind)
  for _ in range(4):
    state = tape.feed(kind, state, np.arange(count, count + size))
    positions, shown = state.offered
    assert positions.shape[2] == shown.shape[2]
    for query in range(count, count + size):
      want = [*range(max(query - 3, 0), query + 1)]
      assert tape.seen(kind, state, query, FULL) == want
    count += size


def test_groups_stay_inside_a_row():
  """B-26: codes and scales of a row are the same whatever its neighbours."""
  x = jax.random.normal(jax.random.key(0), (3, 2, 5, 7))
  codec = kvjax.Int8()
  both = codec.encode(x.at[1].set(1e6), np.float32)
  alone = codec.encode(x[:1], np.float32)
  tiny.alike(jax.tree.map(lambda leaf: leaf[:1], both), alone)
