"""Rows as a value: rewind, fork, take, repeat, concat.

Each acts on every leaf that has a batch axis, positions and scales included;
paged rows move their table and reference counts. Results never share a leaf
with their input.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import check_array, check_flags, check_type
from kvjax.caches.kind import BookChange, Kind
from kvjax.decoding.allocate import check_sizes
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.leaf_axes import map_leaves
from kvjax.decoding.program import program
from kvjax.decoding.tracing import computing, in_trace, is_traced

ALIKE = (
  'They must have the same kinds, codecs, capacity, heads, widths, rotary '
  'length, source, mesh and rules. Allocate them with the same config and '
  'init_cache.'
)


def rewind(cache: Cache, lengths: Any, *, donate: bool = False) -> Cache:
  """Returns the cache as if each row had seen only its first tokens.

  Exact, or refused. It clears the overflow flag of every row. Inside a trace,
  where nothing can be refused, a row that cannot go back that far keeps its
  tokens and has its overflow flag set; where pages are too few for the copies
  of shared ones, so does every row that needs a copy.

  Args:
    cache: the cache.
    lengths: int `[B]` (or one for all rows), tokens to keep.
    donate: reuse the buffers of `cache`.

  Raises:
    ValueError: a length is negative or beyond the row's own, or the row has
      forgotten what a query at that length would see (`earliest`).
  """
  check_alive(cache)
  lengths = _to_array(lengths)
  shape = (cache.batch_size,) if lengths.ndim else ()
  check_array('lengths', lengths, shape, jnp.integer)
  if not is_traced(cache.length, lengths):
    _check_rewind(cache, jax.device_get(lengths))
  lengths = _to_device(lengths)
  if donate and _has_pages(cache) and not in_trace():
    _refuse_lack_of_pages(_rewind_fits(cache, lengths), 'rewind')
  result, fits = _rewind(cache, lengths, donate=donate)
  _refuse_lack_of_pages(fits, 'rewind')
  return result


def earliest(cache: Cache) -> jax.Array:
  """Returns int32 `[B]`: the smallest length each row can be rewound to.

  0 for dense and paged caches; a ring goes back by its slack and one; a
  bounded cache does not go back at all.

  Args:
    cache: the cache to be rewound.

  Raises:
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_alive(cache)
  return _earliest(cache)


@program(donated=())
def _earliest(cache):
  shortest = jnp.zeros_like(cache.length)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    lowest = kind.shortest_rewind(book, cache.length)
    shortest = jnp.maximum(shortest, lowest)
  return jnp.minimum(shortest, cache.length)


def fork(cache: Cache, *, donate: bool = False) -> Cache:
  """Returns an independent copy: both may go on, either may be donated.

  Args:
    cache: the cache to copy.
    donate: reuse the buffers of `cache`, which cannot be used again.
  """
  check_alive(cache)
  return _copy(cache, donate=donate)


def take(cache: Cache, rows: Any, *, donate: bool = False) -> Cache:
  """Returns the cache with the given rows, in that order.

  Inside a trace, where nothing can be refused, a row that does not exist, or is
  without a page for the copy of a shared one, comes back empty, with its
  overflow flag set.

  Args:
    cache: B rows.
    rows: int `[M]`, each in `[0, B)`; a row may be taken more than once.
    donate: reuse the buffers of `cache`.

  Raises:
    ValueError: an index is out of range, or a pool of pages is exhausted.
  """
  check_alive(cache)
  check_flags(donate=donate)
  rows = _to_array(rows)
  if not rows.size:
    raise ValueError('rows is empty: take at least one row.')
  check_array('rows', rows, (None,), jnp.integer)
  if not is_traced(rows):
    host = jax.device_get(rows)
    if host.min() < 0 or host.max() >= cache.batch_size:
      raise ValueError(
        f'rows={host.tolist()} must be in [0, {cache.batch_size}), the rows '
        'of the cache.'
      )
  # Buffers of another number of rows cannot be reused.
  donate = donate and rows.shape == cache.length.shape
  rows = _to_device(rows)
  if donate and _has_pages(cache) and not in_trace():
    _refuse_lack_of_pages(_take_fits(cache, rows), 'take')
  result, fits = _take(cache, rows, donate=donate)
  _refuse_lack_of_pages(fits, 'take')
  return result


def repeat(cache: Cache, count: int, *, donate: bool = False) -> Cache:
  """Returns each row `count` times in a row, as `jnp.repeat` would.

  Paged rows share their full pages and copy the partial one.

  Args:
    cache: the cache whose rows are repeated.
    count: copies of each row.
    donate: reuse the buffers of `cache`, which cannot be used again.
  """
  check_sizes(count=count)
  check_alive(cache)
  rows = np.repeat(np.arange(cache.batch_size), count)
  return take(cache, rows, donate=donate)


def concat(caches: Sequence[Cache]) -> Cache:
  """Returns the rows of all caches, which must be arranged alike.

  Args:
    caches: one cache after the other.

  Raises:
    ValueError: there is no cache, or kinds, codecs, capacity or source differ.
  """
  check_type('caches', caches, Iterable, 'give a list of caches.')
  caches = tuple(caches)
  if not caches:
    raise ValueError('caches is empty: give at least one cache.')
  for cache in caches:
    check_alive(cache)
    if jax.tree.structure(cache) != jax.tree.structure(caches[0]):
      raise ValueError(f'Caches to concatenate differ in their layout. {ALIKE}')
  return _concat(caches)


@program()
def _copy(cache: Cache) -> Cache:
  return cache  # a compiled program returns buffers of its results alone


@program()
def _rewind(cache, lengths):
  lengths = jnp.broadcast_to(lengths.astype(jnp.int32), cache.length.shape)
  able = (lengths >= earliest(cache)) & (lengths <= cache.length)
  lengths = jnp.where(able, lengths, cache.length)

  def change(lengths):
    return _change_books(
      cache, lambda kind, book: kind.rewind(book, cache.length, lengths)
    )

  # A row that cannot go back keeps its pages, and the copies of other rows
  # were counted on those pages. So if one row lacks a page, every row that
  # needs a copy stays as it is.
  fits = jnp.all(change(lengths)[1]) | _need_no_copy(cache, lengths)
  lengths = jnp.where(fits, lengths, cache.length)
  result, _ = change(lengths)
  lost = ~(able & fits)
  result = dataclasses.replace(result, length=lengths, overflow=lost)
  return result, fits


def _need_no_copy(cache, lengths):
  free = jnp.ones_like(cache.overflow)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    free &= kind.needs_no_copy(book, lengths)
  return free


# Whether pages suffice is a result of the call itself, and by then a donated
# cache is gone. These programs compute that result alone, before the call.
@program(donated=())
def _rewind_fits(cache, lengths):
  return _rewind(cache, lengths)[1]


@program(donated=())
def _take_fits(cache, rows):
  return _take(cache, rows)[1]


@program()
def _take(cache, rows):
  rows = rows.astype(jnp.int32)
  exists = (rows >= 0) & (rows < cache.batch_size)

  def gather(x, axes):
    if 'batch' not in axes:
      return x
    return jnp.take(x, rows, axis=axes.index('batch'), mode='clip')

  cache = map_leaves(gather, cache)

  def change(lengths):
    return _change_books(
      cache, lambda kind, book: kind.after_gather(book, lengths)
    )

  _, fits = change(jnp.where(exists, cache.length, 0))
  fits &= exists
  # A row that lacks the page for a copy comes back empty: an empty row is exact
  # in every kind, and a row without its last page is not.
  lengths = jnp.where(fits, cache.length, 0)
  result, _ = change(lengths)
  overflow = cache.overflow | ~fits
  return dataclasses.replace(result, length=lengths, overflow=overflow), fits


def _change_books(
  cache: Cache, change: Callable[[Kind, Any], BookChange]
) -> tuple[Cache, jax.Array]:
  """Returns the cache with every book changed, and bool `[B]`: rows that fit.

  Args:
    cache: before.
    change: `(kind, book)` -> the changed book.
  """
  layout = cache.layout
  changes = [
    change(kind, book)
    for kind, book in zip(layout.kinds(), cache.books, strict=True)
  ]
  fits = jnp.ones_like(cache.overflow)
  for changed in changes:
    fits &= changed.fits
  leaves = []
  for index, store in enumerate(layout.stores):
    moves = None if store is None else changes[layout.books[index]].moves
    if store is None or moves is None:
      leaves.append(cache.stores[index])
    else:
      leaves.append(store.kind.copy_pages(cache.stores[index], moves))
  books = tuple(changed.book for changed in changes)
  return dataclasses.replace(cache, books=books, stores=tuple(leaves)), fits


@program(donated=())
def _concat(caches):
  kinds = caches[0].layout.kinds()
  pages_before = [0] * len(kinds)
  shifted = []
  for cache in caches:
    books = [
      kind.offset_pages(book, pages)
      for kind, book, pages in zip(
        kinds, cache.books, pages_before, strict=True
      )
    ]
    shifted.append(dataclasses.replace(cache, books=tuple(books)))
    pages_before = [
      pages + book.positions.shape[1]
      for pages, book in zip(pages_before, cache.books, strict=True)
    ]

  def join(*leaves, axes):
    axis = axes.index('batch' if 'batch' in axes else 'pages')
    kept = {(np.delete(x.shape, axis).tobytes(), x.dtype) for x in leaves}
    if len(kept) > 1:
      raise ValueError(
        f'Caches to concatenate have arrays {[x.shape for x in leaves]} and '
        f'{[x.dtype.name for x in leaves]}. {ALIKE}'
      )
    return jnp.concatenate(leaves, axis=axis)

  return map_leaves(join, *shifted)


def _to_array(numbers: Any) -> Any:
  return numbers if isinstance(numbers, jax.Array) else np.asarray(numbers)


def _to_device(numbers: Any) -> jax.Array:
  """Returns numbers of the host on a device, explicitly."""
  on_host = isinstance(numbers, np.ndarray)
  return jax.device_put(numbers) if on_host else numbers


def _check_rewind(cache: Cache, lengths: np.ndarray) -> None:
  lengths = np.broadcast_to(lengths, (cache.batch_size,))
  with computing():
    have, low = jax.device_get((cache.length, earliest(cache)))
  for row in np.flatnonzero((lengths > have) | (lengths < 0)):
    raise ValueError(
      f'Row {row}: cannot rewind to {lengths[row]}; it has seen {have[row]} '
      'tokens. Rewind to between 0 and that.'
    )
  for row in np.flatnonzero(lengths < low):
    raise ValueError(
      f'Row {row}: cannot rewind from {have[row]} to {lengths[row]}; what a '
      f'query there would see is forgotten. It can go back to {low[row]}; '
      'give its kind more slack to go further.'
    )


def _has_pages(cache: Cache) -> bool:
  """Returns whether some rows share a pool, which can be exhausted."""
  return any(
    axis == 'pages'
    for kind in cache.layout.kinds()
    for _, axis in kind.leaf_axes(1, 1)
  )


def _refuse_lack_of_pages(fits: jax.Array, call: str) -> None:
  if is_traced(fits) or jax.device_get(fits).all():
    return
  row = int(np.argmin(jax.device_get(fits)))
  raise ValueError(
    f'Row {row}: out of pages for the copy of a shared page that {call} '
    'needs. The cache is unchanged. Give the pool more pages.'
  )
