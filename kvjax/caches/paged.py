"""The paged cache: a pool of pages, and a table of them a row.

After vLLM's PagedAttention (arXiv 2309.06180, section 4.2), with the allocator
as pure functions of the book. Rows may share full pages; a page that a row
still writes to belongs to it alone, so forking copies the partial page at once
and steps never copy.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.arguments import check_fields
from kvjax.caches.array_spec import array_spec
from kvjax.caches.kind import BookChange, Kind
from kvjax.caches.slots import EMPTY, of_groups
from kvjax.context import PARTITION
from kvjax.mesh.region import first_index, on_every_device, run_on_shards
from kvjax.mesh.rules import spec_of
from kvjax.native import write_narrow
from kvjax.streams.view import paged_view


class PageMoves(NamedTuple):
  """Pages to copy in every store, after rows came to share a partial page.

  Attributes:
    extra: pages by which the pool grows first, static.
    source: int32 `[B]`, the page to copy.
    target: int32 `[B]`, the page to write; beyond the pool for none.
  """

  extra: int
  source: jax.Array
  target: jax.Array


@struct.dataclass
class PagedBook:
  """Who owns which page.

  Attributes:
    positions: int32 `[1, pages, page]`, -1 where a slot holds no token.
    table: int32 `[B, n]`, page of each stretch of positions; -1 for none.
    references: int32 `[pages]`, rows that hold the page; 0 is free.
  """

  positions: jax.Array
  table: jax.Array
  references: jax.Array


@dataclasses.dataclass(frozen=True)
class Paged(Kind):
  """Keeps every token, in pages of a pool that all rows share.

  Attributes:
    page: tokens a page.
    pages: pages in the pool; None for enough to fill every row.
  """

  page: int = 64
  pages: int | None = None

  def __post_init__(self):
    check_fields(self, at_least={'page': 1, 'pages': 1, 'slots': 1})

  @property
  def columns(self) -> int:
    """Pages that a full row holds."""
    return -(-self.size // self.page)

  @property
  def row_slots(self):
    return self.columns * self.page

  def bind_groups(self, capacity, exact, group):
    if self.page % group:
      raise ValueError(
        f'{self}: codes of {group} tokens do not fill pages of {self.page}. '
        f'Use a page of a multiple of {group} tokens.'
      )
    slots = max((capacity - exact) // group, 1) * group
    return dataclasses.replace(self, slots=slots)

  def pool(self, batch: int) -> int:
    """Pages in the pool."""
    return batch * self.columns if self.pages is None else self.pages

  def leaf_axes(self, batch, heads):
    pool = (self.pool(batch), 'pages')
    return (heads, 'kv_heads'), pool, (self.page, 'slots')

  def book(self, batch, heads):
    del heads
    pool = self.pool(batch)
    return PagedBook(
      array_spec(
        (1, pool, self.page),
        jnp.int32,
        ('kv_heads', 'pages', 'slots'),
        EMPTY,
      ),
      array_spec((batch, self.columns), jnp.int32, ('batch', 'columns'), EMPTY),
      array_spec((pool,), jnp.int32, ('pages',)),
    )

  def has_room(self, book, length, count):
    room = (length + count <= self.size) | (count == 0)
    need = self._pages(length + count) - self._pages(length)
    need = jnp.where(room, need, 0)
    # Fewest pages first, so that no row that is refused counts for another.
    order = jnp.argsort(need, stable=True)
    free = jnp.sum(book.references == 0, dtype=jnp.int32)
    fits = jnp.cumsum(need[order]) <= free
    return room & jnp.zeros_like(room).at[order].set(fits)

  def place(self, book, length, positions):
    pool = book.positions
    # A pool of which devices hold parts stays outside.
    book = dataclasses.replace(book, positions=None)
    book, slots = on_every_device(self._allocate)(book, length, positions)
    slots = jnp.where(positions >= 0, slots, pool.size)
    written = _write(pool, positions[:, None], slots)
    return dataclasses.replace(book, positions=written), slots

  def _allocate(self, book, length, positions):
    """Gives rows their pages; returns the slots `[B, T]` of positions."""
    count = jnp.sum(positions >= 0, axis=-1, dtype=jnp.int32)
    book = allocate(book, self._pages(length), self._pages(length + count))
    column = jnp.clip(positions // self.page, 0, self.columns - 1)
    pages = jnp.take_along_axis(book.table, column, axis=1)
    return book, pages * self.page + positions % self.page

  def write(self, store, new, slots):
    return jax.tree.map(lambda leaf, x: _write(leaf, x, slots), store, new)

  def views(self, book, store, length):
    filled = jnp.max(length)
    return (paged_view(store, book.positions, book.table, filled),)

  def rewind(self, book, before, after):
    book = release(book, self._pages(after), self._pages(before))
    book, fits, moves = self._separate(book, after)
    # Rows that share a page share its positions too. So a row clears positions
    # only in its partial page, which is its alone after `_separate`.
    page, is_partial = self._partial(book, after)
    positions = book.positions[:, jnp.maximum(page, 0)]
    kept = jnp.where(positions < after[None, :, None], positions, EMPTY)
    nowhere = book.references.shape[0]
    target = jnp.where(is_partial & fits, page, nowhere)
    positions = book.positions.at[:, target].set(kept, mode='drop')
    book = dataclasses.replace(book, positions=positions)
    return BookChange(book, fits, moves)

  def needs_no_copy(self, book, length):
    page, is_partial = self._partial(book, length)
    return ~is_partial | (book.references[page] == 1)

  def after_gather(self, book, length):
    extra = max(self.pool(len(length)) - book.references.shape[0], 0)
    positions = jnp.pad(
      book.positions, ((0, 0), (0, extra), (0, 0)), constant_values=EMPTY
    )
    columns = jnp.arange(self.columns, dtype=jnp.int32)[None, :]
    kept = columns < self._pages(length)[:, None]
    table = jnp.where(kept, book.table, EMPTY)
    book = _owned(positions, table)
    book, fits, moves = self._separate(book, length)
    return BookChange(book, fits, moves._replace(extra=extra))

  def copy_pages(self, store, moves):
    def copy(pool):
      if moves.extra:
        widths = [(0, 0)] * pool.ndim
        widths[1] = (0, moves.extra)
        pool = jnp.pad(pool, widths)
      copied = pool[:, moves.source]
      return pool.at[:, moves.target].set(copied, mode='drop')

    return jax.tree.map(copy, store)

  def offset_pages(self, book, pages):
    table = jnp.where(book.table >= 0, book.table + pages, EMPTY)
    return dataclasses.replace(book, table=table)

  def _pages(self, length: jax.Array) -> jax.Array:
    return -(-length // self.page)

  def _partial(self, book, length) -> tuple[jax.Array, jax.Array]:
    """Returns the page `[B]` that a row writes next, if it is partly full.

    And bool `[B]`: whether the row has such a page.
    """
    column = jnp.minimum(length // self.page, self.columns - 1)
    page = jnp.take_along_axis(book.table, column[:, None], axis=1)[:, 0]
    return page, (length % self.page != 0) & (page >= 0)

  def _separate(self, book, length) -> tuple[PagedBook, jax.Array, PageMoves]:
    """Gives every row a partial page that no other row has."""
    page, is_partial = self._partial(book, length)
    same = (page[:, None] == page[None, :]) & is_partial[None, :]
    earlier = jnp.tril(same, -1).any(axis=1)
    writers = jnp.sum(same, axis=1, dtype=jnp.int32)
    readers = book.references[jnp.maximum(page, 0)] - writers
    # The first row that writes to a page keeps it, if no row only reads it.
    copy = is_partial & (earlier | (readers > 0))
    order, free = _free_pages(book)
    rank = jnp.cumsum(copy.astype(jnp.int32)) - 1
    fits = ~copy | (rank < free)
    copy &= fits
    target = jnp.where(
      copy, order[jnp.clip(rank, 0, len(order) - 1)], len(order)
    )
    column = jnp.where(copy, length // self.page, self.columns)
    rows = jnp.arange(len(length), dtype=jnp.int32)
    table = book.table.at[rows, column].set(target, mode='drop')
    source = jnp.maximum(page, 0)
    copied = book.positions[:, source]
    positions = book.positions.at[:, target].set(copied, mode='drop')
    return _owned(positions, table), fits, PageMoves(0, source, target)


def allocate(book: PagedBook, have: jax.Array, want: jax.Array) -> PagedBook:
  """Returns the book with columns `[have, want)` of each row given a page.

  The caller has checked that free pages suffice (`Kind.has_room`).
  """
  order, _ = _free_pages(book)
  need = want - have
  offset = jnp.cumsum(need) - need
  columns = jnp.arange(book.table.shape[1], dtype=jnp.int32)[None, :]
  is_new = (columns >= have[:, None]) & (columns < want[:, None])
  rank = offset[:, None] + columns - have[:, None]
  fresh = order[jnp.clip(rank, 0, len(order) - 1)]
  target = jnp.where(is_new, fresh, len(order)).reshape(-1)
  return PagedBook(
    book.positions,
    jnp.where(is_new, fresh, book.table),
    book.references.at[target].add(1, mode='drop'),
  )


def release(book: PagedBook, keep: jax.Array, have: jax.Array) -> PagedBook:
  """Returns the book without columns `[keep, have)` of each row."""
  columns = jnp.arange(book.table.shape[1], dtype=jnp.int32)[None, :]
  dropped = (columns >= keep[:, None]) & (columns < have[:, None])
  return _owned(book.positions, jnp.where(dropped, EMPTY, book.table))


def _free_pages(book: PagedBook) -> tuple[jax.Array, jax.Array]:
  """Returns page ids, free ones first in order, and how many are free."""
  taken = (book.references > 0).astype(jnp.int32)
  order = jnp.argsort(taken, stable=True).astype(jnp.int32)
  return order, jnp.sum(taken == 0, dtype=jnp.int32)


def _owned(positions: jax.Array, table: jax.Array) -> PagedBook:
  """Returns the book of a table; a page that no row holds is free and empty."""
  pages = positions.shape[1]
  where = jnp.where(table >= 0, table, pages).reshape(-1)
  references = jnp.zeros(pages, jnp.int32).at[where].add(1, mode='drop')
  in_use = (references > 0)[None, :, None]
  return PagedBook(jnp.where(in_use, positions, EMPTY), table, references)


def _write(pool: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
  """Writes `new [B, K, T, ...]` into `pool [K, pages, page, ...]`.

  At `[B, T]`, counted from the pool's first slot: it is one row's store.
  """
  partition, slots = PARTITION.value, of_groups(slots, new.shape[2]).reshape(-1)
  new = jax.lax.collapse(jnp.moveaxis(new, 0, 1), 1, 3)
  if partition is None:
    return _write_pool(pool, new, slots)
  axes = partition.axes(('kv_heads', '', 'slots'), pool.shape[:3])
  page = pool.shape[2]

  def write(pool, new, slots):
    pages, offsets = jnp.divmod(slots, page)
    size = pool.shape[2]
    offsets -= first_index(axes[2], size)
    is_here = (offsets >= 0) & (offsets < size)
    nowhere = pool.shape[1] * size
    slots = jnp.where(is_here, pages * size + offsets, nowhere)
    return _write_pool(pool, new, slots)

  specs = spec_of(*axes), spec_of(axes[0]), spec_of()
  return run_on_shards(write, partition, specs, specs[0])(pool, new, slots)


def _write_pool(pool, new, slots):
  return write_narrow.put(pool, new[None], slots[None, None], _scatter)


def _scatter(pool, new, slots):
  pages, offsets = jnp.divmod(slots[0, 0], pool.shape[2])

  def write_head(pool, new):
    return pool.at[pages, offsets].set(new, mode='drop')

  return jax.vmap(write_head)(pool, new[0])
