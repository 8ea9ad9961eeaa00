"""Random operations on caches, each followed by all that must be true then.

Batches and widths are few, so that a thousand runs compile each program once.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest

import kvjax
from tests.contract.table import VOCAB
from tests.stateful.feeds import WIDTH, chunk, ids, logits_by_row
from tests.stateful.rows import Rows
from tests.stateful.subjects import CLEAR, LONGEST, Subject, Wanted
from tests.stateful.tally import Tally

BATCHES = (1, 2, 4)
MOST = max(BATCHES)
LIVE = 2  # caches at a time
NUM_TOKENS = 3  # of a generation
NO_ROOM = 'do not fit|out of pages'

earliest = jax.jit(kvjax.earliest)


@dataclasses.dataclass
class Item:
  """A cache, what it should remember, and its bits as they were returned."""

  cache: kvjax.Cache
  rows: Rows

  def __post_init__(self):
    self.bits = bits(self.cache)

  @property
  def batch(self) -> int:
    return len(self.rows.tokens)

  def assert_untouched(self) -> None:
    for old, new in zip(self.bits, jax.tree.leaves(self.cache), strict=True):
      np.testing.assert_array_equal(old, new)


def bits(cache: kvjax.Cache) -> list[np.ndarray]:
  """Returns copies of all arrays."""
  return [np.array(x) for x in jax.tree.leaves(cache)]


class Session:
  """Two caches of one subject at a time; each operation checks its own."""

  def __init__(self, subject: Subject, tally: Tally, batch: int):
    self.subject, self.tally = subject, tally
    self.live: list[Item] = []
    self.put(0, *subject.init(batch))

  def rest(self, place):
    del place

  def init(self, place, batch):
    self.count('init')
    self.put(place, *self.subject.init(batch))

  def draw(self, name, place, masks, seed, padding):
    """Returns a cache, new tokens of its rows, their call, and rows after."""
    item = self.take_up(name, place)
    new, feed = chunk(masks[: item.batch], seed, padding)
    return item, new, feed, item.rows.extend(new)

  def extend(self, place, masks, seed, padding):
    item, new, feed, rows = self.draw('extend', place, masks, seed, padding)
    with self.refused(rows, item, NO_ROOM):
      logits, cache = self.call(kvjax.extend, item, **feed)
      self.compare(rows, new, logits_by_row(logits, feed))
      self.replace(item, cache, rows)

  def prefill(self, place, masks, seed, padding):
    item, new, feed, rows = self.draw('prefill', place, masks, seed, padding)
    with self.refused(rows, item, NO_ROOM):
      logits, cache = self.call(kvjax.prefill, item, **feed)
      last = [x[-1:] for x in new]
      self.compare(rows, last, np.asarray(logits)[:, None])
      for row, tokens in zip(np.asarray(logits), new, strict=True):
        assert tokens or np.isnan(row).all()
      self.replace(item, cache, rows, donated=True)

  def decode_step(self, place, seed, active, is_token):
    item = self.take_up('decode_step', place)
    active = np.array(active[: item.batch])
    token = ids(seed, item.batch, 1)[:, 0]
    token = np.where(is_token[: item.batch], token, -1)
    new = [
      (int(t),) if t >= 0 and a else ()
      for t, a in zip(token, active, strict=True)
    ]
    rows, cache = self.step(item, new, token=token, active=active)
    self.replace(item, cache, rows, donated=True)

  def decode_steps_of_all_rows(self, place, seed, count):
    """Often beyond the capacity, which a step refuses without waiting."""
    for i in range(count):
      item = self.take_up('decode_step', place)
      token = ids(seed + i, item.batch, 1)
      rows, cache = self.step(
        item, token.tolist(), token=token[:, 0], donate=False
      )
      self.replace(item, cache, rows)

  def step(self, item, new, **more):
    """Returns rows and cache after a step; its logits are compared."""
    rows = item.rows.step(new)
    logits, cache = self.call(kvjax.decode_step, item, **more)
    # A row that refuses its token is lost, and its logits are NaN.
    self.compare(rows, new, np.asarray(logits)[:, None])
    return rows, cache

  def rewind(self, place, back, donate):
    item = self.take_up('rewind', place)
    pairs = zip(item.rows.lengths, back, strict=False)
    self.rewind_to(item, [max(n - b, 0) for n, b in pairs], donate)

  def rewind_a_row_to_its_edges(self, place, row, by):
    """Back to the earliest length, one below it, or one beyond the row."""
    item = self.take_up('rewind', place)
    lengths, row = item.rows.lengths, row % item.batch
    lengths[row] = lengths[row] + 1 if by > 0 else item.rows.low[row] + by
    self.rewind_to(item, lengths, donate=False)

  def rewind_to(self, item, lengths, donate):
    rows = item.rows.rewind(lengths)
    with self.refused(rows, item, 'rewind'):
      cache = kvjax.rewind(
        item.cache, np.array(lengths, np.int32), donate=donate
      )
      self.replace(item, cache, rows, donated=donate)

  def fork(self, place, other):
    item = self.take_up('fork', place)
    self.put(other, kvjax.fork(item.cache), item.rows)

  def take(self, place, numbers, half=False, donate=False):
    """As many rows as there are, or half of them, some of them repeated."""
    item = self.take_up('take', place)
    count = -(-item.batch // 2) if half else item.batch
    numbers = [row % item.batch for row in numbers[:count]]
    rows = item.rows.take(numbers)
    with self.refused(rows, item, 'out of pages'):
      cache = kvjax.take(item.cache, numbers, donate=donate)
      donated = donate and count == item.batch
      self.replace(item, cache, rows, donated)

  def repeat(self, place):
    item = self.take_up('repeat', place)
    if item.batch == MOST:
      return
    numbers = [row for row in range(item.batch) for _ in range(2)]
    rows = item.rows.take(numbers)
    with self.refused(rows, item, 'out of pages'):
      self.replace(item, kvjax.repeat(item.cache, 2), rows)

  def wrong_arguments(self, place, seed, row, extend):
    """An id that the vocabulary, or a row that the cache does not have."""
    item = self.take_up('wrong arguments', place)
    if extend:
      tokens = ids(seed, item.batch, WIDTH)
      tokens[row % item.batch, seed % WIDTH] = VOCAB
      with self.refused(None, item, f'{VOCAB}'):
        self.call(kvjax.extend, item, tokens=tokens)
    else:
      with self.refused(None, item, 'must be in'):
        kvjax.take(item.cache, [-1 if seed % 2 else item.batch] * item.batch)

  def concat(self, place, other, seed):
    item = self.take_up('concat', place)
    other = self.live[other % len(self.live)]
    if item.batch != other.batch or item.batch == MOST:
      return
    joined = Item(
      kvjax.concat([item.cache, other.cache]), item.rows.join(other.rows)
    )
    self.check(joined)
    if not self.subject.pooled:
      self.replace(item, joined.cache, joined.rows)
      return
    # A pool grows here. One step on it, not a program for every size.
    token = ids(seed, joined.batch, 1)
    rows, cache = self.step(
      joined, token.tolist(), token=token[:, 0], donate=False
    )
    joined.assert_untouched()
    self.check(Item(cache, rows))

  def generate(self, place, stops):
    item = self.take_up('generate', place)
    stops = stops[: item.batch]
    room = [(0,) * max(stop - 1, 0) for stop in stops]
    with self.refused(item.rows.extend(room), item, NO_ROOM):
      tokens, cache = self.call(
        kvjax.generate,
        item,
        logits=self.last_logits(item.rows),
        num_tokens=NUM_TOKENS,
        stop_lengths=np.array(stops),
      )
      new = self.greedy(item.rows, stops, np.asarray(tokens).tolist())
      rows = item.rows.extend([x[:-1] for x in new])
      # Where no row goes on after its first token, nothing is fed.
      self.replace(item, cache, rows, donated=max(map(len, new)) > 1)

  def last_logits(self, rows: Rows) -> np.ndarray:
    """Returns what the library returned of each row's last token."""
    logits = np.full((len(rows.tokens), VOCAB), np.nan, np.float32)
    wanted = self.subject.oracle(rows.tokens)
    for line, row, lost in zip(logits, wanted, rows.lost, strict=True):
      if len(row.logits) and not lost:
        line[:] = row.logits[-1]
    return logits

  def greedy(
    self, rows: Rows, stops: Sequence[int], tokens: Any
  ) -> list[tuple[int, ...]]:
    """Returns the new tokens of each row; they are greedy, or nearly."""
    new = [tuple(t for t in row if t >= 0) for row in tokens]
    seen = [(*a, *b) for a, b in zip(rows.tokens, new, strict=True)]
    logits = self.last_logits(rows)
    starts = [bool(np.isfinite(line).all()) for line in logits]
    for i, wanted in enumerate(self.subject.oracle(seen)):
      count = len(new[i])
      assert count == (stops[i] if starts[i] else 0)
      assert tuple(tokens[i]) == new[i] + (-1,) * (NUM_TOKENS - count)
      if not count or not len(wanted.logits):
        continue
      before = wanted.logits[-count - 1 : -1]
      chosen = np.take_along_axis(before, np.array(new[i])[:, None], axis=1)
      assert (chosen[:, 0] >= before.max(axis=1) - 2 * wanted.limit).all()
    return new

  def save_and_load(self, place):
    item = self.take_up('save', place)
    config, params = self.subject.config, self.subject.params
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'cache.safetensors')
      kvjax.save_cache(path, item.cache, config, params)
      cache = kvjax.load_cache(path, config, params)
    assert jax.tree.structure(cache) == jax.tree.structure(item.cache)
    for old, new in zip(item.bits, bits(cache), strict=True):
      assert old.dtype == new.dtype
      np.testing.assert_array_equal(old, new)
    self.replace(item, cache, item.rows)

  def take_up(self, operation: str, place: int) -> Item:
    """Returns a cache; a new one for rows that outgrew the oracle."""
    self.count(operation)
    item = self.live[place % len(self.live)]
    if max(item.rows.lengths) > LONGEST - 2 * WIDTH:
      cache, rows = self.subject.init(item.batch)
      self.replace(item, cache, rows)
      item = self.live[place % len(self.live)]
    return item

  def count(self, operation: str) -> None:
    self.tally.operations[operation] += 1

  def call(self, function: Callable, item: Item, **more: Any) -> Any:
    subject = self.subject
    return function(subject.config, subject.params, item.cache, **more)

  @contextlib.contextmanager
  def refused(
    self, rows: Rows | None, item: Item, message: str
  ) -> Iterator[None]:
    """Wants a ValueError exactly if there are no rows to go on with."""
    if rows is not None:
      yield
      return
    self.tally.refusals += 1
    with pytest.raises(ValueError, match=message):
      yield
    item.assert_untouched()

  def put(self, place: int, cache: kvjax.Cache, rows: Rows) -> None:
    """Adds a cache, or puts it in the place of another."""
    item = Item(cache, rows)
    self.check(item)
    if len(self.live) < LIVE:
      self.live.append(item)
    else:
      self.live[place] = item
    self.check_all()

  def replace(
    self,
    item: Item,
    cache: kvjax.Cache,
    rows: Rows | None,
    donated: bool = False,
  ) -> None:
    """Puts a cache in the place of the one that it was made of."""
    assert rows is not None, 'A refusal was wanted.'
    if donated:
      with pytest.raises(kvjax.DonatedCacheError):
        kvjax.check(item.cache)
    else:
      item.assert_untouched()
    where = next(i for i, other in enumerate(self.live) if other is item)
    self.live[where] = Item(cache, rows)
    self.check(self.live[where])
    self.check_all()

  def check_all(self) -> None:
    for item in self.live:
      item.assert_untouched()

  def check(self, item: Item) -> None:
    """Asserts all that the lists say of a cache."""
    cache, rows = item.cache, item.rows
    np.testing.assert_array_equal(cache.length, rows.lengths)
    np.testing.assert_array_equal(cache.overflow, rows.lost)
    np.testing.assert_array_equal(earliest(cache), rows.low)
    if any(rows.lost):
      with pytest.raises(ValueError, match='Rewind'):
        kvjax.check(cache)
    else:
      kvjax.check(cache)
    if rows.pages is not None:
      used = np.asarray(cache.books[0].references) > 0
      assert (~used).sum() == rows.pages.free

  def compare(
    self, rows: Rows | None, new: Sequence[Sequence[int]], logits: Any
  ) -> None:
    """Compares logits of the last `len(new[i])` tokens of each row `i`."""
    assert rows is not None, 'A refusal was wanted.'
    wanted = self.subject.oracle(rows.tokens)
    for row, want in enumerate(wanted):
      if not new[row]:
        continue
      if rows.lost[row]:
        assert np.isnan(logits[row]).all()
      elif len(want.logits):
        self.compare_row(logits[row], want, len(new[row]))

  def compare_row(self, logits, wanted: Wanted, count: int) -> None:
    error = float(np.abs(logits - wanted.logits[-count:]).max())
    assert error <= wanted.limit, (error, wanted.limit)
    self.tally.compared += 1
    if wanted.tolerance > CLEAR:
      self.tally.unclear += 1
    else:
      relative = error / float(np.abs(wanted.logits).max())
      self.tally.worst = max(self.tally.worst, relative)
