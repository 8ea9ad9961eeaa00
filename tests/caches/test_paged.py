"""The allocator of pages: who owns what, and that nothing is lost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.caches.paged import allocate, release
from tests.facts import tape, tiny

KIND = kvjax.Paged(page=3, pages=5).bind(9)
CONFIG = tiny.decoder(kvjax.Grouped(2, 1, 5))


def ints(*x):
  """Returns int32 `[B]`."""
  return jnp.asarray(x, jnp.int32)


def fill(lengths, pages=9):
  """Returns a cache of rows of those lengths, and their tokens."""
  ids = tiny.tokens(len(lengths), 8)
  cache = kvjax.init_cache(
    CONFIG, len(lengths), 9, kinds=kvjax.Paged(page=3, pages=pages)
  )
  _, cache = kvjax.extend(CONFIG, tiny.params(CONFIG), cache, ids, lengths)
  return cache, ids


def audit(cache):
  """Asserts that references are counted, and partial pages not shared."""
  book = jax.tree.map(np.asarray, cache.books[0])
  used_pages = book.table[book.table >= 0]
  count = np.bincount(used_pages, minlength=len(book.references))
  np.testing.assert_array_equal(book.references, count)
  for row, length in enumerate(np.asarray(cache.length)):
    pages = book.table[row]
    assert (pages >= 0).sum() == -(-length // 3)
    found = book.positions[0][pages[pages >= 0]].ravel()
    np.testing.assert_array_equal(found[:length], np.arange(length))
    if length % 3:
      assert count[pages[length // 3]] == 1
      assert (found[length:] == -1).all()


def test_allocate_and_release(maybe_jit):
  book = tape.blank(KIND, batch=2).book
  book = maybe_jit(allocate)(book, ints(0, 0), ints(2, 1))
  assert book.table.tolist() == [[0, 1, -1], [2, -1, -1]]
  assert book.references.tolist() == [1, 1, 1, 0, 0]
  book = maybe_jit(release)(book, ints(1, 1), ints(2, 1))
  assert book.table.tolist() == [[0, -1, -1], [2, -1, -1]]
  assert book.references.tolist() == [1, 0, 1, 0, 0]
  book = maybe_jit(allocate)(book, ints(1, 1), ints(2, 3))
  assert book.table.tolist() == [[0, 1, -1], [2, 3, 4]]


def test_a_page_forgets_when_it_is_given_anew():
  row = tape.feed(KIND, tape.blank(KIND), np.arange(6))
  book = release(row.book, ints(0), ints(2))
  row = row.replace(book=book, length=ints(0))
  row = tape.feed(KIND, row, [10.0])
  assert tape.stored(KIND, row) == {0: 10.0}
  assert np.asarray(row.book.positions)[0, 0].tolist() == [0, -1, -1]


def test_who_is_admitted(maybe_jit):
  """Rows that need fewest pages first, then in order; none always fits."""
  row = tape.feed(KIND, tape.blank(KIND, 3), np.arange(5), [5, 2, 0])
  admits = maybe_jit(KIND.has_room)
  for count, want in (
    ((1, 1, 3), [True, True, True]),
    ((2, 2, 3), [True, True, False]),
    ((5, 1, 0), [False, True, True]),
    ((0, 7, 4), [True, True, False]),
  ):
    got = admits(row.book, row.length, ints(*count))
    assert got.tolist() == want, count


def test_who_is_refused_takes_no_page_from_another():
  """Whatever refuses a row: the pool, its capacity or another kind's."""
  row = tape.feed(KIND, tape.blank(KIND, 3), np.arange(9), [9, 3, 0])
  assert int((row.book.references == 0).sum()) == 1
  for count, want in (
    ((1, 3, 0), [False, True, True]),
    ((0, 6, 3), [True, False, True]),
    ((0, 3, 6), [True, True, False]),
    ((9, 6, 6), [False, False, False]),
  ):
    got = KIND.has_room(row.book, row.length, ints(*count))
    assert got.tolist() == want, count
  config = tiny.decoder(tiny.GQA, tiny.GQA)
  kinds = kvjax.Paged(page=3, pages=3, slots=12), kvjax.Dense(slots=4)
  cache = kvjax.init_cache(config, 2, 12, kinds=kinds)
  params, ids = tiny.params(config), tiny.tokens(2, 8)
  _, cache = kvjax.extend(config, params, cache, ids, [3, 0])
  run = functools.partial(kvjax.extend, config)
  _, cache = jax.jit(run)(params, cache, ids, ints(2, 4))
  assert cache.overflow.tolist() == [True, False]


def test_out_of_pages_loses_nothing():
  cache, ids = fill([5, 4], pages=5)
  before = jax.tree.map(np.array, cache)
  params = tiny.params(CONFIG)
  with pytest.raises(ValueError, match='Row 1: out of pages for 3.*after 4'):
    kvjax.extend(CONFIG, params, cache, ids[:, :3], [3, 3])
  tiny.alike(before, cache)
  _, cache = kvjax.extend(CONFIG, params, cache, ids[:, :2], [1, 2])
  audit(cache)
  token = ids[:, 0]
  logits, after = kvjax.decode_step(CONFIG, params, cache, token, donate=False)
  assert np.isnan(logits).all(-1).tolist() == [False, True]
  assert after.overflow.tolist() == [False, True]
  audit(after)


def test_repeat_shares_full_pages_and_copies_the_partial():
  cache, _ = fill([5, 3])
  both = kvjax.repeat(cache, 2)
  audit(both)
  table = np.asarray(both.books[0].table)
  assert table[0, 0] == table[1, 0]
  assert table[0, 1] != table[1, 1]
  assert table[2, 0] == table[3, 0]


def test_copies_go_their_own_ways():
  """The tokens of one are never seen by the other, nor lost to it."""
  cache, ids = fill([4, 2])
  params = tiny.params(CONFIG)
  both = kvjax.repeat(cache, 2)
  more = tiny.tokens(4, 2, seed=3)
  got, both = kvjax.extend(CONFIG, params, both, more)
  audit(both)
  for row in range(4):
    start = int(cache.length[row // 2])
    whole = jnp.concatenate([ids[row // 2, :start], more[row]])
    want = kvjax.forward(CONFIG, params, whole[None])[0, start:]
    tiny.close(got[row], want)


def test_no_pages_for_the_copy():
  cache, _ = fill([5, 5], pages=4)
  with pytest.raises(ValueError, match='Row 1: out of pages.*take needs'):
    kvjax.take(cache, [0, 0, 1])


def test_a_refused_call_leaves_the_cache_that_it_was_offered():
  cache, _ = fill([5, 5, 0], pages=4)
  with pytest.raises(ValueError, match='out of pages.*take.*unchanged'):
    kvjax.take(cache, [0, 0, 1], donate=True)
  audit(cache)
  cache, _ = fill([6, 6], pages=5)
  both = kvjax.take(cache, [0, 0, 1])
  _, both = tiny.follow(CONFIG, both, jnp.asarray([[1], [-1], [-1]]))
  with pytest.raises(ValueError, match='out of pages.*rewind.*unchanged'):
    kvjax.rewind(both, [7, 5, 5], donate=True)
  audit(both)
  audit(kvjax.rewind(both, [7, 6, 3], donate=True))


def test_rewind_into_a_shared_page_copies_it():
  cache, ids = fill([6, 2])
  both = kvjax.take(cache, [0, 0, 1])
  assert int(both.books[0].references.max()) == 2
  back = kvjax.rewind(both, [4, 6, 2])
  audit(back)
  got, after = tiny.follow(CONFIG, back, ids[jnp.asarray([1, 0, 1]), :1])
  audit(after)
  params = tiny.params(CONFIG)
  whole = jnp.concatenate([ids[0, :6], ids[0, :1]])[None]
  tiny.close(got[1, 0], kvjax.forward(CONFIG, params, whole)[0, -1])
  whole = jnp.concatenate([ids[0, :4], ids[1, :1]])[None]
  tiny.close(got[0, 0], kvjax.forward(CONFIG, params, whole)[0, -1])


def test_no_page_for_the_copy_inside_a_trace():
  """The row comes back empty and flagged; its neighbour goes on unharmed."""
  cache, ids = fill([5, 0], pages=2)
  both = jax.jit(kvjax.take)(cache, ints(0, 0))
  assert both.length.tolist() == [5, 0]
  assert both.overflow.tolist() == [False, True]
  audit(both)
  more = jnp.stack([ids[1, :1], ids[1, 1:2]])
  got, after = tiny.follow(CONFIG, both, more)
  audit(after)
  whole = jnp.concatenate([ids[0, :5], more[0]])[None]
  tiny.close(
    got[0, 0], kvjax.forward(CONFIG, tiny.params(CONFIG), whole)[0, -1]
  )


def test_no_page_to_rewind_inside_a_trace():
  """Rows that need a copy stay as they were; what is alone goes back."""
  cache, ids = fill([6, 6], pages=5)
  both = kvjax.take(cache, [0, 0, 1])
  _, both = tiny.follow(CONFIG, both, jnp.asarray([[1], [-1], [-1]]))
  back = jax.jit(kvjax.rewind)(both, ints(7, 5, 5))
  assert back.length.tolist() == [7, 6, 5]
  assert back.overflow.tolist() == [False, True, False]
  audit(back)
  got, _ = tiny.follow(CONFIG, back, jnp.asarray([[-1], [-1], [3]]))
  whole = jnp.concatenate([ids[1, :5], ints(3)])[None]
  tiny.close(
    got[2, 0], kvjax.forward(CONFIG, tiny.params(CONFIG), whole)[0, -1]
  )


def test_rows_that_leave_give_their_pages_back():
  cache, _ = fill([5, 4])
  one = kvjax.take(cache, [1])
  audit(one)
  assert int((one.books[0].references > 0).sum()) == 2
  audit(kvjax.concat([one, cache]))
  assert int((kvjax.rewind(cache, 0).books[0].references > 0).sum()) == 0
