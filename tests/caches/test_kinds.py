"""What each kind binds, limits, forgets and takes back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.caches.slots import write_rows
from tests.facts import tape

BOUND = {
  # kind, capacity -> slots, limit in tokens, chunk
  'dense': (kvjax.Dense(), 7, 7, 7, None),
  'ring': (kvjax.Ring(window=5), 99, 5, None, 1),
  'ring_slack': (kvjax.Ring(window=5, slack=2), 99, 7, None, 3),
  'ring_short': (kvjax.Ring(window=5, slack=2), 3, 5, 3, None),
  'ring_exact': (kvjax.Ring(window=5), 5, 5, None, 1),
  'sinks': (kvjax.Sinks(sinks=2, window=5), 99, 7, None, 1),
  'sinks_slack': (kvjax.Sinks(sinks=2, window=5, slack=3), 99, 10, None, 4),
  'sinks_short': (kvjax.Sinks(sinks=2, window=5, slack=1), 4, 5, 4, None),
  'bounded': (kvjax.Bounded(budget=5, slack=2), 3, 7, None, 4),
  'bounded_free': (kvjax.Bounded(budget=5, protect=(0, 2)), 3, 5, None, 5),
  'bounded_chunks': (
    kvjax.Bounded(budget=5, slack=2, prefill='chunks'),
    *(3, 7, None, 3),
  ),
}


def read_positions(book):
  """Returns the positions of row 0."""
  return np.asarray(book.positions)[0].tolist()


def evict(kind, total, positions, weights, before, after):
  """Returns positions and totals of one row and head, room made for one."""
  book = tape.blank(kind).book
  book = book.replace(
    positions=jnp.asarray([[positions]], jnp.int32),
    total=jnp.asarray([[total]], jnp.float32),
  )
  if weights is None:
    book = book.replace(total=None)
  else:
    weights = jnp.asarray([[weights]])
  book = kind.observe(book, tape.evidence(book, [before], [after], weights))
  shown = tape.evidence(book, [after], [after])
  room = kind.make_room(book, shown, jnp.asarray([[after]], jnp.int32))
  total = None if weights is None else np.asarray(room.total)[0, 0].tolist()
  return read_positions(room)[0], total


@pytest.mark.parametrize(
  ('kind', 'capacity', 'slots', 'limit', 'chunk'), BOUND.values(), ids=BOUND
)
def test_bind(kind, capacity, slots, limit, chunk):
  bound = kind.bind(capacity)
  assert (bound.size, bound.limit, bound.chunk) == (slots, limit, chunk)
  assert bound.bind(capacity + 50) == bound
  assert hash(bound) == hash(dataclasses.replace(bound))
  with pytest.raises(ValueError, match=r'call bind\(capacity\) first'):
    _ = kind.size


def test_a_kind_is_made_of_its_own_sizes():
  assert kvjax.Ring(16).window == 16
  assert kvjax.Sinks(4, 16) == kvjax.Sinks(sinks=4, window=16)
  assert kvjax.Paged(16).page == 16
  assert kvjax.Bounded(16, kvjax.Recency()).budget == 16


def test_a_capacity_below_the_sinks_is_still_the_limit():
  kind = kvjax.Sinks(sinks=4, window=8).bind(3)
  assert (kind.size, kind.limit) == (3, 3)


def test_write_rows(maybe_jit):
  """Rows of slots shared by heads, a slot a head, and outside: dropped."""
  leaf = jnp.full((2, 3, 5, 1), -1.0)
  new = jnp.arange(12.0).reshape(2, 3, 2, 1)
  shared = jnp.asarray([[[4, 0]], [[5, 2]]], jnp.int32)
  got = np.asarray(maybe_jit(write_rows)(leaf, new, shared))[..., 0]
  np.testing.assert_array_equal(got[0, 1], [3, -1, -1, -1, 2])
  np.testing.assert_array_equal(got[1, 2], [-1, -1, 11, -1, -1])
  own = jnp.asarray([[[0, 1], [2, 3], [4, 9]]] * 2, jnp.int32)
  got = np.asarray(maybe_jit(write_rows)(leaf, new, own))[..., 0]
  np.testing.assert_array_equal(
    got[1],
    [
      [6, 7, -1, -1, -1],
      [-1, -1, 8, 9, -1],
      [-1, -1, -1, -1, 10],
    ],
  )


@pytest.mark.parametrize('slot', [0, 4, 5, 9])
def test_write_rows_of_one_token(slot, maybe_jit):
  """It is written, or dropped outside the store; the rest is untouched."""
  leaf = jnp.full((1, 3, 5, 2), -1.0)
  new = jnp.arange(6.0).reshape(1, 3, 1, 2)
  got = maybe_jit(write_rows)(leaf, new, jnp.full((1, 1, 1), slot, jnp.int32))
  want = np.full((1, 3, 5, 2), -1.0)
  want[:, :, slot : slot + 1] = new[:, :, : max(0, min(1, 5 - slot))]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ('kind', 'count', 'want'),
  [
    (kvjax.Ring(window=5), 3, 0),
    (kvjax.Ring(window=5), 8, 7),
    (kvjax.Ring(window=5, slack=3), 8, 0),
    (kvjax.Ring(window=5, slack=3), 12, 8),
    (kvjax.Sinks(sinks=2, window=5), 7, 0),
    (kvjax.Sinks(sinks=2, window=5), 11, 10),
    (kvjax.Sinks(sinks=2, window=5, slack=3), 11, 7),
    (kvjax.Dense(), 11, 0),
    (kvjax.Paged(page=4), 11, 0),
    (kvjax.Bounded(budget=5), 4, 4),
  ],
)
def test_earliest(kind, count, want):
  """All that a query at that length sees is there, and at no lower one."""
  kind = kind.bind(16)
  row = tape.feed(kind, tape.blank(kind), np.arange(count))
  assert kind.shortest_rewind(row.book, row.length).tolist() == [want]
  if kind.name not in ('ring', 'sinks'):
    return
  positions = np.asarray(row.book.positions)
  rule = kind.visible_through(kvjax.Visibility())
  for length in range(max(want - 1, 0), count):
    need = [s for s in range(length) if rule.sees(length, jnp.int32(s))]
    whole = set(need) <= set(positions.ravel().tolist())
    assert whole == (length >= want), length


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(kvjax.Ring(window=5, slack=3), id='ring'),
    pytest.param(kvjax.Sinks(sinks=2, window=5, slack=3), id='sinks'),
    pytest.param(kvjax.Dense(), id='dense'),
  ],
)
def test_rewind_forgets_by_position(kind):
  kind = kind.bind(16)
  row = tape.feed(kind, tape.blank(kind), np.arange(11))
  after = jnp.asarray([9], jnp.int32)
  book, fits, moves = kind.rewind(row.book, row.length, after)
  before = read_positions(row.book)[0]
  assert read_positions(book)[0] == [p if p < 9 else -1 for p in before]
  assert (fits.tolist(), moves) == ([True], None)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    pytest.param(
      lambda: kvjax.Ring(window=0),
      'Ring window=0 must be at least 1',
      id='Ring(window=0)',
    ),
    pytest.param(
      lambda: kvjax.Ring(window=1, slack=-1),
      'slack=-1 must be at least 0',
      id='Ring(window=1,slack=-1)',
    ),
    pytest.param(
      lambda: kvjax.Sinks(sinks=0, window=3),
      'sinks=0 must be at least 1',
      id='Sinks(sinks=0,window=3)',
    ),
    pytest.param(
      lambda: kvjax.Sinks(sinks=1),
      'window=0 must be at least 1',
      id='Sinks(sinks=1)',
    ),
    pytest.param(
      lambda: kvjax.Sinks(window=3, slack=-2),
      'slack=-2 must be at least 0',
      id='Sinks(window=3,slack=-2)',
    ),
    pytest.param(
      lambda: kvjax.Bounded(budget=1),
      'budget=1 must be at least 2',
      id='Bounded(budget=1)',
    ),
    pytest.param(
      lambda: kvjax.Bounded(budget=3, slack=-1),
      'slack=-1 must be at least 0',
      id='Bounded(budget=3,slack=-1)',
    ),
    pytest.param(
      lambda: kvjax.Bounded(budget=3, score=kvjax.HeavyHitters(3)),
      'budget=3 must exceed the recent=3',
      id='Bounded(budget=3,score=HeavyHitters(3))',
    ),
    pytest.param(
      lambda: kvjax.Paged(page=0),
      'page=0 must be at least 1',
      id='Paged(page=0)',
    ),
    pytest.param(
      lambda: kvjax.Paged(pages=0),
      'pages=0 must be at least 1',
      id='Paged(pages=0)',
    ),
  ],
)
def test_refusals(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  ('score', 'positions', 'total', 'weights', 'gone'),
  [
    # 5 slots, budget 4: of four tokens one goes, whatever their order.
    pytest.param(
      kvjax.HeavyHitters(recent=0),
      [3, 0, -1, 2, 1],
      [2, 5, 0, 1, 3],
      [2, 0.5, 9, 0.1, 0.2],
      3,
      id='heavy',
    ),
    pytest.param(
      kvjax.HeavyHitters(recent=2),
      [3, 0, -1, 2, 1],
      [2, 5, 0, 1, 3],
      [1, 0.5, 9, 0.1, 0.2],
      4,
      id='heavy_recent',
    ),
    pytest.param(
      kvjax.LastQuery(),
      [3, 0, -1, 2, 1],
      [2, 5, 0, 1, 3],
      [0.1, 0.3, 9, 0.2, 0.4],
      3,
      id='last',
    ),
    pytest.param(
      kvjax.Recency(), [3, 0, -1, 2, 1], [2, 5, 0, 1, 3], None, 1, id='recency'
    ),
  ],
)
def test_what_goes_first(score, positions, total, weights, gone):
  kind = kvjax.Bounded(4, score, 1, protect=(0, 0), prefill='chunks').bind(9)
  found, after = evict(kind, total, positions, weights, 3, 4)
  want = list(positions)
  want[gone] = -1
  assert found == want
  if score.keeps_statistic:
    # Position 3 is new: what its slot's last token had received is gone.
    old = np.where(np.asarray(positions) == 3, 0, total)
    old = old if isinstance(score, kvjax.HeavyHitters) else [0] * 5
    want = np.where(np.asarray(positions) >= 0, np.add(old, weights), total)
    np.testing.assert_allclose(after, want, rtol=1e-6)


def test_nothing_goes_below_the_budget():
  kind = kvjax.Bounded(budget=5).bind(9)
  positions = [0, 1, 2, 3, -1]
  found, _ = evict(kind, [0] * 5, positions, [1.0] * 5, 3, 4)
  assert found == positions


def test_rows_and_heads_choose_for_themselves():
  """Scores are never summed over the batch, and over heads on request."""
  weights = jnp.asarray(
    [
      [[9, 1, 9, 9], [9, 9, 1, 9]],
      [[1, 9, 9, 9], [9, 9, 9, 8]],
    ],
    jnp.float32,
  )
  for per_head, want in (
    (True, [[1, 2], [0, 3]]),
    (False, [[1], [0]]),
  ):
    score = kvjax.HeavyHitters(recent=0)
    kind = kvjax.Bounded(4, score, per_head=per_head, protect=(0, 0)).bind(9)
    book = tape.blank(kind, 2, 2).book
    slot_positions = jnp.broadcast_to(
      jnp.arange(4, dtype=jnp.int32), book.total.shape
    )
    book = book.replace(positions=slot_positions)
    mass = weights if per_head else weights.sum(axis=1, keepdims=True)
    book = kind.observe(book, tape.evidence(book, [3, 3], [4, 4], mass))
    shown = tape.evidence(book, [4, 4], [4, 4])
    book = kind.make_room(book, shown, jnp.full((2, 1), 4, jnp.int32))
    gone = np.argmin(np.asarray(book.positions), axis=-1)
    assert gone.tolist() == want


def test_a_reused_slot_starts_from_nothing():
  """What the slot's last token had received is not the next one's."""
  kind = kvjax.Bounded(budget=3).bind(9)
  row = tape.feed(kind, tape.blank(kind), [7])
  for stale in (50.0, np.nan):
    book = row.book.replace(
      total=jnp.full((1, 1, 3), 50.0).at[0, 0, 1].set(stale)
    )
    book, slots = kind.place(book, row.length, jnp.asarray([[1]], jnp.int32))
    assert int(slots[0, 0, 0]) == 1
    weights = jnp.asarray([[[1.0, 2.0, 0.0]]])
    shown = tape.evidence(book, row.length, row.length + 1, weights)
    book = kind.observe(book, shown)
    assert np.asarray(book.total)[0, 0].tolist() == [51, 2, 50]


def test_heavy_hitters_keep_half_of_the_budget_for_the_newest():
  """The paper's split (arXiv 2306.14048): 0 forgets all that is new."""
  for budget, recent in ((2, 1), (9, 4), (96, 48)):
    score = kvjax.Bounded(budget=budget).bind(8).score
    assert score == kvjax.HeavyHitters(recent=recent)
  kept = kvjax.Bounded(budget=9, score=kvjax.HeavyHitters(recent=0))
  assert kept.bind(8).score.recent == 0


def test_another_budget_keeps_its_own_half_for_the_newest():
  kind = dataclasses.replace(kvjax.Bounded(64), budget=16)
  assert kind == kvjax.Bounded(16)
  assert kind.bind(8).score == kvjax.HeavyHitters(recent=8)
