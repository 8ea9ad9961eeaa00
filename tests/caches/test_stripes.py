"""Dense slots in stripes, one a device: where tokens go, how they are read."""

import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.caches.kind import Book
from kvjax.kernels import blockwise


def test_positions_go_round_the_stripes():
  kind = kvjax.Dense(stripes=4).bind(8)
  slots = kind.slot_of(jnp.arange(-1, 9, dtype=jnp.int32)[None])
  # Position -1 is no token: it goes beyond the store.
  np.testing.assert_array_equal(slots, [[8, 0, 2, 4, 6, 1, 3, 5, 7, 2 + 0]])


def test_every_stripe_has_a_slot_for_what_is_left_over():
  kind = kvjax.Dense(stripes=4).bind(9)
  assert kind.row_slots == 12 and kind.limit == 9
  slots = kind.slot_of(jnp.arange(9, dtype=jnp.int32)[None])
  assert len(set(np.asarray(slots)[0].tolist())) == 9


def test_a_kind_that_compares_all_slots_is_not_split():
  assert kvjax.Dense().split(4) == kvjax.Dense(stripes=4)
  assert kvjax.Ring(window=4).split(4) == kvjax.Ring(window=4)
  kind = kvjax.Bounded(budget=4)
  assert kind.split(1) is kind
  with pytest.raises(ValueError, match='Bounded compares the scores of all'):
    kind.split(2)


@pytest.mark.parametrize('block', [None, 3])
def test_stripes_are_read_as_slots_in_order_are(block):
  """A query at position 3 needs slot 12: no stripe ends at its own number."""
  tokens, width = 10, 5
  rng = np.random.default_rng(0)
  query, key = rng.normal(size=(2, 2, 1, 1, tokens, width)).astype(np.float32)
  positions = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (2, tokens))
  found = []
  for stripes in (1, 4):
    kind = kvjax.Dense(stripes=stripes).bind(13)
    empty = jnp.full((2, 1, kind.row_slots), -1, jnp.int32)
    book, slots = kind.place(Book(empty), positions[:, 0], positions)
    zeros = jnp.zeros((2, 1, kind.row_slots, width))
    store = kind.write({'key': zeros}, {'key': key[:, 0]}, slots)
    (view,) = kind.views(book, store, positions[:, -1] + 1)
    queries, scoring = {'key': jnp.asarray(query)}, kvjax.Scoring(1.0, 'key')
    found.append(
      blockwise.attend(queries, positions, view, scoring, block=block)
    )
  np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
  np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5)


@pytest.mark.parametrize('length, filled', [(0, 0), (1, 1), (8, 2), (9, 3)])
def test_stripes_are_filled_alike(length, filled):
  kind = kvjax.Dense(stripes=4).bind(13)
  book = Book(jnp.full((2, 1, kind.row_slots), -1, jnp.int32))
  (view,) = kind.views(book, {}, jnp.asarray([length, 0], jnp.int32))
  assert int(view.stripe_filled) == filled
  assert view.filled == kind.row_slots == 16
