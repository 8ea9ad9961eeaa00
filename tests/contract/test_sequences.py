"""Any sequence of operations, against lists of tokens.

The model of a cache is a list of tokens a row; of a pool, a list of pages a
row. Shapes are fixed, so that a hundred sequences compile a few programs.
"""

import collections
import dataclasses
import functools
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvjax
from tests.contract.oracle import Sees
from tests.contract.table import VARIANTS, VOCAB, Cell, Row, draw

CAPACITY, WIDTH, BATCH, PAGE, POOL = 13, 3, 3, 2, 11
ROWS = (
  Row('dense', kvjax.Dense(), Sees(), 0, False),
  Row('ring', kvjax.Ring(window=4, slack=2), Sees(4), 0, True),
  Row('sinks', kvjax.Sinks(sinks=2, window=4, slack=2), Sees(4, 2), 0, True),
  Row('paged', kvjax.Paged(page=PAGE, pages=POOL), Sees(), 0, False),
)
counts = st.lists(st.integers(0, WIDTH), min_size=BATCH, max_size=BATCH)
rows = st.lists(st.integers(0, BATCH - 1), min_size=BATCH, max_size=BATCH)
operations = st.lists(
  st.one_of(
    st.tuples(st.just('extend'), counts, st.integers(0, 99)),
    st.tuples(st.just('extend'), counts, st.integers(0, 99)),
    st.tuples(st.just('wrap'), st.just([WIDTH] * BATCH), st.integers(0, 9)),
    st.tuples(st.just('rewind'), counts, st.just(0)),
    st.tuples(st.just('gather'), rows, st.just(0)),
    st.tuples(st.just('fork'), counts, st.integers(0, 99)),
    st.tuples(st.just('concat'), st.just([]), st.just(0)),
  ),
  min_size=3,
  max_size=12,
)
quick = settings(
  max_examples=25,
  deadline=None,
  database=None,
  derandomize=not os.environ.get('EXPLORE'),
  suppress_health_check=list(HealthCheck),
)


@dataclasses.dataclass
class Pages:
  """Pages of each row; full ones may be shared, the last may not."""

  rows: list[list[int]]
  fresh: int = 0

  def free(self) -> int:
    return POOL - len({page for row in self.rows for page in row})

  def copy(self) -> 'Pages':
    return Pages([list(row) for row in self.rows], self.fresh)

  def new(self) -> int:
    self.fresh += 1
    return self.fresh

  def extend(self, before, after) -> bool:
    """Rows take pages in order; all or none, as the host decides."""
    need = [
      -(-a // PAGE) - -(-b // PAGE) for a, b in zip(after, before, strict=True)
    ]
    if sum(need) > self.free():
      return False
    for row, count in zip(self.rows, need, strict=True):
      row += [self.new() for _ in range(count)]
    return True

  def settle(self, lengths) -> bool:
    """Gives every row that stands inside a page one that no other row has."""
    for row, length in zip(self.rows, lengths, strict=True):
      del row[-(-length // PAGE) :]
    holders = collections.Counter(p for row in self.rows for p in row)
    free = self.free()
    for row, length in zip(self.rows, lengths, strict=True):
      if length % PAGE and holders[row[-1]] > 1:
        free -= 1
        holders[row[-1]] -= 1
        row[-1] = self.new()
    return free >= 0


@functools.cache
def subject(row: Row):
  cell = Cell(VARIANTS[2], row, None, row.name)
  params = draw(cell.config, 0)
  return cell, params, cell.oracle(params)


@dataclasses.dataclass
class Run:
  """A cache and what it should hold."""

  row: Row
  cache: kvjax.Cache
  tokens: list[list[int]]
  pages: Pages
  low: list[int]  # the smallest length each row can go back to

  @property
  def lengths(self) -> list[int]:
    return [len(tokens) for tokens in self.tokens]

  @property
  def paged(self) -> bool:
    return self.row.name == 'paged'

  def check_books(self):
    np.testing.assert_array_equal(self.cache.length, self.lengths)
    kvjax.check(self.cache)
    if self.paged:
      used = np.asarray(self.cache.books[0].references) > 0
      assert POOL - used[:POOL].sum() == self.pages.free()

  def extend(self, new: np.ndarray, count: list[int]):
    cell, params, oracle = subject(self.row)
    after = [a + b for a, b in zip(self.lengths, count, strict=True)]
    pages = self.pages.copy()
    fits = not self.paged or pages.extend(self.lengths, after)
    if not self.row.wraps:
      fits &= max(after) <= CAPACITY
    if not fits:
      with pytest.raises(ValueError, match='do not fit|out of pages'):
        cell.extend(params, self.cache, new, np.array(count))
      return
    logits, self.cache = cell.extend(params, self.cache, new, np.array(count))
    self.pages = pages
    for i, (tokens, n) in enumerate(zip(self.tokens, count, strict=True)):
      tokens.extend(new[i, :n].tolist())
      if n:
        want = oracle(np.array([tokens]))[0]
        limit = 1e-5 * np.abs(want).max()
        got = np.asarray(logits)[i, :n]
        np.testing.assert_allclose(got, want[-n:], rtol=0, atol=limit)
        self.low[i] = max(self.low[i], self.reach(len(tokens)))

  def reach(self, length: int) -> int:
    """A ring of window + slack slots goes back by slack + 1."""
    rule, kind = self.row.rule, self.row.kind
    if not self.row.wraps or length <= rule.sinks + rule.window + kind.slack:
      return 0
    return length - kind.slack - 1

  def rewind(self, back: list[int]):
    lengths = [max(n - b, 0) for n, b in zip(self.lengths, back, strict=True)]
    pages = self.pages.copy()
    fits = not self.paged or pages.settle(lengths)
    if not fits or any(a < b for a, b in zip(lengths, self.low, strict=True)):
      with pytest.raises(ValueError, match='rewind'):
        kvjax.rewind(self.cache, np.array(lengths))
      return
    self.cache = kvjax.rewind(self.cache, np.array(lengths))
    self.pages = pages
    self.tokens = [t[:n] for t, n in zip(self.tokens, lengths, strict=True)]

  def gather(self, rows: list[int]):
    pages = self.pages.copy()
    pages.rows = [list(pages.rows[row]) for row in rows]
    lengths = [self.lengths[row] for row in rows]
    if self.paged and not pages.settle(lengths):
      with pytest.raises(ValueError, match='pages'):
        kvjax.take(self.cache, rows)
      return
    self.cache, self.pages = kvjax.take(self.cache, rows), pages
    self.tokens = [list(self.tokens[row]) for row in rows]
    self.low = [self.low[row] for row in rows]

  def concat(self):
    """Splits the rows and joins them again; a pool would grow by that."""
    if not self.paged:
      parts = [kvjax.take(self.cache, rows) for rows in ([0, 1], [2])]
      self.cache = kvjax.concat(parts)


def draw_tokens(seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, VOCAB, (BATCH, WIDTH), np.int32)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
@quick
@given(steps=operations)
def test_any_sequence_of_operations(row, steps):
  cell, _, _ = subject(row)
  empty = [[] for _ in range(BATCH)]
  pages = Pages([[] for _ in range(BATCH)])
  run = Run(row, cell.init(BATCH, CAPACITY), empty, pages, [0] * BATCH)
  for name, numbers, seed in steps:
    if name == 'extend':
      run.extend(draw_tokens(seed), numbers)
    elif name == 'wrap':
      for i in range(4):
        run.extend(draw_tokens(seed + i), numbers)
    elif name == 'rewind':
      run.rewind(numbers)
    elif name == 'gather':
      run.gather(numbers)
    elif name == 'concat':
      run.concat()
    else:
      other = dataclasses.replace(
        run,
        cache=kvjax.fork(run.cache),
        tokens=[list(tokens) for tokens in run.tokens],
        pages=run.pages.copy(),
        low=list(run.low),
      )
      other.extend(draw_tokens(seed + 1), numbers)
    run.check_books()


def test_two_pools_joined_hold_both():
  cell, params, oracle = subject(ROWS[3])
  a, b = draw_tokens(1), draw_tokens(2)
  caches = [
    cell.extend(params, cell.init(BATCH, CAPACITY), x, np.array([3, 2, 1]))[1]
    for x in (a, b)
  ]
  both = kvjax.concat(caches)
  new = np.concatenate([b, a])
  count = np.array([3, 1, 2, 0, 3, 2])
  logits, both = cell.extend(params, both, new, count)
  for i, (old, more, n) in enumerate(zip([*a, *b], new, count, strict=True)):
    tokens = np.concatenate([old[: 3 - i % 3], more[:n]])
    want = oracle(tokens[None])[0, len(tokens) - n :]
    limit = 1e-5 * np.abs(want).max(initial=1.0)
    got = np.asarray(logits)[i, :n]
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)
