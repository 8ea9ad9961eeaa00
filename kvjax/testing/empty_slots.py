"""NaN wherever a cache holds no token.

A masked weight is 0, but 0 times NaN is NaN. Attention that reads a slot to
which nothing was written therefore returns NaN at once.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.caches.slots import EMPTY
from kvjax.decoding.cache import Cache


@functools.singledispatch
def poison(cache: Any) -> Any:
  """Returns the cache with NaN in every slot that holds no token.

  Integer leaves (codes) get their largest number instead. Slots of tokens,
  lengths and positions keep their values. Knows kvjax caches; for a cache of
  your own class, `kvjax.testing.poison.register(YourCache, function)`.

  Args:
    cache: a cache of kvjax, or of a registered class.

  Raises:
    TypeError: nothing is registered for this class.
  """
  raise TypeError(
    f'{type(cache).__name__} is no kvjax cache: which of its slots hold no '
    'token? Tell with kvjax.testing.poison.register(cls, function).'
  )


def can_poison(cache: Any) -> bool:
  """Returns whether `poison` knows caches of this class."""
  unknown = poison.dispatch(object)
  return poison.dispatch(type(cache)) is not unknown


@poison.register
def _poison_cache(cache: Cache) -> Cache:
  """Returns a kvjax cache with NaN in the empty slots of every layer."""
  stores, books = [], list(cache.books)
  for index, (number, store) in enumerate(
    zip(cache.layout.books, cache.stores, strict=True)
  ):
    if number < 0:  # the layer reads another layer's streams
      stores.append(store)
      continue
    kind, book = cache.layout.store_of(index).kind, cache.books[number]
    parts = []
    for tier in kind.tiers(book, store, None):
      fill = functools.partial(_fill, np.asarray(tier.book.positions) == EMPTY)
      parts.append(jax.tree.map(fill, tier.store))
    stores.append(kind.join(parts))
    empty = np.asarray(book.positions) == EMPTY
    fill = functools.partial(_fill_statistic, empty)
    books[number] = jax.tree.map(fill, book)
  return dataclasses.replace(cache, books=tuple(books), stores=tuple(stores))


def _fill_statistic(empty: np.ndarray, leaf: jax.Array) -> jax.Array:
  """Fills a leaf of a book if it holds a float for each slot (scores)."""
  slotted = leaf.shape == empty.shape
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  return _fill(empty, leaf) if slotted and floating else leaf


def _fill(empty: np.ndarray, leaf: jax.Array) -> jax.Array:
  """Fills the slots of `leaf [B, K, S, ...]` in `empty [B, 1 | K, S]`.

  An entry that several slots share is filled if all of them are empty.
  """
  host = np.array(leaf)
  groups = empty.reshape(empty.shape[:2] + (host.shape[2], -1))
  where = np.broadcast_to(groups.all(axis=-1), host.shape[:3])
  floating = jnp.issubdtype(leaf.dtype, jnp.floating)
  host[where] = np.nan if floating else np.iinfo(host.dtype).max
  return jnp.asarray(host)
