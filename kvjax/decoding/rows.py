"""Rows as a value: rewind, fork, take, repeat, concat.

Each acts on every leaf that has a batch axis, positions and scales included;
paged rows move their table and reference counts. Results never share a leaf
with their input.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.decoding.cache import (
  Cache,
  check_alive,
  in_trace,
  is_leaf,
  is_traced,
)

OnLeaf = Callable[..., jax.Array]


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
  if not is_traced(cache.length, lengths):
    _check_rewind(cache, np.asarray(lengths))
  lengths = jnp.broadcast_to(
    jnp.asarray(lengths, jnp.int32), (cache.batch_size,)
  )
  result, fits = _run(_rewind, donate, cache, lengths)
  return _refuse_lack_of_pages(result, fits, 'rewind')


def earliest(cache: Cache) -> jax.Array:
  """Returns int32 `[B]`: the smallest length each row can be rewound to.

  0 for dense and paged caches; a ring goes back by its slack and one; a
  bounded cache does not go back at all.
  """
  found = jnp.zeros_like(cache.length)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    found = jnp.maximum(found, kind.shortest_rewind(book, cache.length))
  return jnp.minimum(found, cache.length)


def fork(cache: Cache, *, donate: bool = False) -> Cache:
  """Returns an independent copy: both may go on, either may be donated."""
  check_alive(cache)
  return _run(_same, donate, cache)


def take(cache: Cache, rows: Any, *, donate: bool = False) -> Cache:
  """Returns the cache with the given rows, in that order.

  Inside a trace, where nothing can be refused, a row without a page for the
  copy of a shared one comes back empty, with its overflow flag set.

  Args:
    cache: B rows.
    rows: int `[M]`, each in `[0, B)`; a row may be taken more than once.
    donate: reuse the buffers of `cache`.

  Raises:
    ValueError: an index is out of range, or a pool of pages is exhausted.
  """
  check_alive(cache)
  if not is_traced(rows):
    host = np.asarray(rows)
    if (
      host.ndim != 1
      or not host.size
      or not np.issubdtype(host.dtype, np.integer)
    ):
      raise ValueError(f'rows={rows} must be a non-empty list of integers.')
    if host.min() < 0 or host.max() >= cache.batch_size:
      raise ValueError(
        f'rows={host.tolist()} must lie in [0, {cache.batch_size}), the rows '
        'of the cache.'
      )
  rows = jnp.asarray(rows, jnp.int32)
  # Buffers of another number of rows cannot be reused.
  donate = donate and rows.shape == cache.length.shape
  result, fits = _run(_take, donate, cache, rows)
  return _refuse_lack_of_pages(result, fits, 'take')


def repeat(cache: Cache, count: int, *, donate: bool = False) -> Cache:
  """Returns each row `count` times in a row, as `jnp.repeat` would.

  Paged rows share their full pages and copy the partial one.
  """
  if not isinstance(count, int) or count < 1:
    raise ValueError(f'count={count!r} must be a positive integer.')
  rows = np.repeat(np.arange(cache.batch_size), count)
  return take(cache, rows, donate=donate)


def concat(caches: Sequence[Cache]) -> Cache:
  """Returns the rows of all caches, which must be arranged alike.

  Raises:
    ValueError: there is no cache, or kinds, codecs, capacity or source differ.
  """
  if not caches:
    raise ValueError('concat needs at least one cache.')
  for cache in caches:
    check_alive(cache)
    if cache.layout != caches[0].layout or _source(cache) != _source(caches[0]):
      raise ValueError(
        'Caches to concatenate must have the same kinds, codecs, capacity, '
        'rotary length and source. Allocate them with the same init_cache.'
      )
  return _run(_concat, False, tuple(caches))


def _source(cache: Cache) -> list[Any]:
  """Returns row shapes and dtypes of what the cache holds of a source."""
  leaves = jax.tree.leaves((cache.cross, cache.source))
  return [(x.shape[1:], x.dtype) for x in leaves]


def _same(cache: Cache) -> Cache:
  return cache


def map_rows(f: OnLeaf, *caches: Cache) -> Cache:
  """Returns a cache of `f(*leaves, axes=names)` over caches arranged alike.

  `axes` names the axes of a leaf; trailing ones may be left out.
  """
  first = caches[0]

  def books(i, kind):
    spec = kind.book(1, 1)
    names = jax.tree.map(lambda leaf: leaf.axes, spec, is_leaf=is_leaf)
    return jax.tree.map(
      lambda axes, *x: f(*x, axes=axes),
      names,
      *(c.books[i] for c in caches),
      is_leaf=lambda x: isinstance(x, tuple),
    )

  def stores(i, memory):
    if memory is None:
      return {}
    axes = tuple(name for _, name in memory.kind.leaf_axes(1, 1))
    return jax.tree.map(
      lambda *x: f(*x, axes=axes), *(c.stores[i] for c in caches)
    )

  layout = first.layout
  by_batch = functools.partial(jax.tree.map, lambda *x: f(*x, axes=('batch',)))
  return dataclasses.replace(
    first,
    length=by_batch(*(c.length for c in caches)),
    overflow=by_batch(*(c.overflow for c in caches)),
    books=tuple(books(i, kind) for i, kind in enumerate(layout.kinds())),
    stores=tuple(stores(i, m) for i, m in enumerate(layout.stores)),
    cross=by_batch(*(c.cross for c in caches)),
    source=by_batch(*(c.source for c in caches)),
  )


def _rewind(cache, lengths):
  able = (lengths >= earliest(cache)) & (lengths <= cache.length)
  lengths = jnp.where(able, lengths, cache.length)

  def change(lengths):
    return _change_books(
      cache, lambda kind, book: kind.rewind(book, cache.length, lengths)
    )

  # A row that stays keeps pages that others counted on: if any has to, all do
  # but those that need no copy.
  fits = jnp.all(change(lengths)[1]) | _need_no_copy(cache, lengths)
  lengths = jnp.where(fits, lengths, cache.length)
  result, _ = change(lengths)
  lost = ~(able & fits)
  result = dataclasses.replace(result, length=lengths, overflow=lost)
  return result, fits


def _need_no_copy(cache, lengths):
  found = jnp.ones_like(cache.overflow)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    found &= kind.needs_no_copy(book, lengths)
  return found


def _take(cache, rows):
  def gather(x, axes):
    if 'batch' not in axes:
      return x
    return jnp.take(x, rows, axis=axes.index('batch'))

  cache = map_rows(gather, cache)

  def settle(lengths):
    return _change_books(
      cache, lambda kind, book: kind.after_gather(book, lengths)
    )

  _, fits = settle(cache.length)
  # Of all kinds, only an empty row is sure to be exact without its last page.
  lengths = jnp.where(fits, cache.length, 0)
  result, _ = settle(lengths)
  return result.replace(length=lengths, overflow=cache.overflow | ~fits), fits


def _change_books(cache, change):
  layout, changed = cache.layout, []
  for kind, book in zip(layout.kinds(), cache.books, strict=True):
    changed.append(change(kind, book))
  fits = functools.reduce(
    jnp.logical_and,
    (ok for _, ok, _ in changed),
    jnp.ones_like(cache.overflow),
  )
  stores = tuple(
    store
    if memory is None or changed[at][2] is None
    else memory.kind.copy_pages(store, changed[at][2])
    for store, memory, at in zip(
      cache.stores, layout.stores, layout.books, strict=True
    )
  )
  books = tuple(book for book, _, _ in changed)
  return cache.replace(books=books, stores=stores), fits


def _concat(caches):
  kinds = caches[0].layout.kinds()
  shifted, before = [], [0] * len(kinds)
  for cache in caches:
    books = [
      kind.offset_pages(book, pages)
      for kind, book, pages in zip(kinds, cache.books, before, strict=True)
    ]
    shifted.append(cache.replace(books=tuple(books)))
    before = [
      pages + book.positions.shape[1]
      for pages, book in zip(before, cache.books, strict=True)
    ]

  def join(*leaves, axes):
    name = 'batch' if 'batch' in axes else 'pages'
    return jnp.concatenate(leaves, axis=axes.index(name))

  return map_rows(join, *shifted)


def _check_rewind(cache: Cache, lengths: np.ndarray) -> None:
  if not np.issubdtype(lengths.dtype, np.integer) or lengths.shape not in (
    (),
    (cache.batch_size,),
  ):
    raise ValueError(
      f'lengths={lengths.tolist()} must be one integer, or one a row '
      f'({cache.batch_size}).'
    )
  lengths = np.broadcast_to(lengths, (cache.batch_size,))
  with jax.ensure_compile_time_eval():  # a caller's jit may close over it
    have, low = np.asarray(cache.length), np.asarray(earliest(cache))
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


def _refuse_lack_of_pages(result: Cache, fits: jax.Array, call: str) -> Cache:
  if is_traced(fits) or np.asarray(fits).all():
    return result
  row = int(np.argmin(np.asarray(fits)))
  raise ValueError(
    f'Row {row}: out of pages for the copy of a shared page that {call} '
    'needs. The cache is unchanged. Give the pool more pages.'
  )


def _run(run: Any, donate: bool, cache: Any, *args: Any) -> Any:
  if in_trace():
    return run(cache, *args)
  return _jitted(run, donate)(cache, *args)


@functools.cache
def _jitted(run: Any, donate: bool) -> Any:
  return jax.jit(run, donate_argnums=(0,) if donate else ())
