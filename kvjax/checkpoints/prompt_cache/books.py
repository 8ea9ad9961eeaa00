"""What the arrays of a saved cache must say of each other.

A kernel reads as far as `length` says and follows the table of pages, and
checks neither. So a file with other numbers is refused before a step.
"""

from typing import Any

import jax
import numpy as np

from kvjax.caches.kind import Kind
from kvjax.caches.residual import Exact
from kvjax.caches.slots import EMPTY
from kvjax.decoding.cache import Cache
from kvjax.decoding.parse import KINDS


def check_books(cache: Cache) -> None:
  """Raises ValueError where lengths, flags and books contradict each other.

  Args:
    cache: of arrays on the host, each of its shape and dtype.
  """
  length = np.asarray(cache.length, np.int64)
  limit = cache.layout.limit
  _require(
    np.asarray(cache.overflow).view(np.uint8) <= 1,
    'overflow holds a byte that is neither 0 nor 1',
  )
  _require(length >= 0, f'length={length.tolist()} must not be negative')
  _require(
    length <= (np.inf if limit is None else limit),
    f'length={length.tolist()} exceeds the {limit} tokens of a row',
  )
  for index, kind in enumerate(cache.layout.kinds()):
    for tier in kind.tiers(cache.books[index], {}, length):
      tokens = np.asarray(tier.length)
      _check_book(f'books.{index}', tier.kind, tier.book, tokens)
  for index, book in enumerate(cache.layout.books):
    if book < 0:
      continue
    kind = cache.layout.store_of(index).kind
    coded, *_ = kind.tiers(cache.books[book], cache.stores[index], None)
    pool = getattr(coded.book, 'references', None)
    if pool is not None:
      leaves = jax.tree.leaves(coded.store)
      _require(
        np.asarray([leaf.shape[1] == len(pool) for leaf in leaves]),
        f'stores.{index} must have the {len(pool)} pages of books.{book}',
      )
  if cache.source is not None:
    source = np.asarray(cache.source)
    _require(
      (source >= EMPTY) & (source < source.shape[1]),
      f'source holds a position outside of -1 to {source.shape[1] - 1}',
    )


def _check_book(name: str, kind: Kind, book: Any, length: np.ndarray) -> None:
  """Raises ValueError for a book that no tokens could have made."""
  if type(kind) not in (*KINDS.values(), Exact):
    return  # a kind from outside may keep other books, by other rules
  positions = book.positions
  if (table := getattr(book, 'table', None)) is not None:
    positions = _positions_by_row(name, book, table, length)
  length = length[:, None]
  _require(
    (positions >= EMPTY) & (positions < length[..., None]),
    f'{name}.positions must be -1 or from 0 to the length of the row - 1',
  )
  order = np.sort(positions, axis=-1)
  _require(
    (order[..., 1:] > order[..., :-1]) | (order[..., 1:] == EMPTY),
    f'{name}.positions must not hold a token twice',
  )
  tokens, last = np.sum(order != EMPTY, axis=-1), order[..., -1]
  if kind.limit is not None:
    _require(
      tokens == length,
      f'{name}.positions must hold every token of the row, length of them',
    )
  elif not kind.book_per_layer:  # the kind forgets the oldest tokens first
    _require(
      (last == EMPTY) | (last == length - 1),
      f'{name}.positions must hold the newest token of the row, length - 1',
    )


def _positions_by_row(
  name: str, book: Any, table: np.ndarray, length: np.ndarray
) -> np.ndarray:
  """Returns positions `[B, 1, S]` of the pages that each row's table names."""
  pool, page = book.positions.shape[1:]
  _require(
    (table >= EMPTY) & (table < pool),
    f'{name}.table must be -1 or a page of the pool, 0 to {pool - 1}',
  )
  columns = np.arange(table.shape[1])[None, :]
  _require(
    (table != EMPTY) == (columns * page < length[:, None]),
    f'{name}.table must give a row just the pages that its length needs',
  )
  _require(
    len(book.references) == pool,
    f'{name}.references must count each of the {pool} pages',
  )
  references = np.bincount(table[table != EMPTY], minlength=pool)
  _require(
    book.references == references,
    f'{name}.references must count the rows whose table names each page',
  )
  _require(
    (references > 0)[None, :, None] | (book.positions == EMPTY),
    f'{name}.positions must be -1 in a page that no row has',
  )
  # Row -1 of the padded pool is a page without tokens.
  padded = np.pad(book.positions[0], ((0, 1), (0, 0)), constant_values=EMPTY)
  return padded[table].reshape(len(table), 1, -1)


def _require(rule: np.ndarray, message: str) -> None:
  if not np.all(rule):
    raise ValueError(message)
