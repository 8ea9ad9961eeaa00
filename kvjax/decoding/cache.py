"""The cache of a model: arrays in a pytree, choices in its static layout."""

from typing import Any

import jax
import numpy as np
from flax import struct

from kvjax.arguments import check_type
from kvjax.decoding.layout import Layout
from kvjax.decoding.summary import Inspection, summarize
from kvjax.decoding.tracing import is_traced


class DonatedCacheError(RuntimeError):
  """A cache was used again after a call that was given its buffers."""


@struct.dataclass
class Cache:
  """What a model remembers of B rows. Immutable; every call returns a new one.

  Attributes:
    length: int32 `[B]`, tokens each row has seen.
    overflow: bool `[B]`, a row was given tokens that did not fit.
    books: which token each slot holds, one a kind (bounded: one a layer).
    stores: streams of each layer, `[B, K, S, H]` by name (pools where paged).
    cross: keys and values of the source `[B, K, S, H]`, a layer, written once;
      None without an encoder.
    source: int32 `[B, S]`, positions of the source, -1 on padding; or None.
    layout: kinds, codecs and lengths; static.
    constants: what is taken off the keys of each layer, `[B, K, H]`; None where
      nothing is.
  """

  length: jax.Array
  overflow: jax.Array
  books: tuple[Any, ...]
  stores: tuple[dict[str, Any], ...]
  cross: tuple[dict[str, Any], ...] | None
  source: jax.Array | None
  layout: Layout = struct.field(pytree_node=False)
  constants: tuple[Any, ...] | None = None

  def constant(self, layer: int) -> Any:
    """Returns what is taken off the keys of a layer, `[B, K, H]`, or None."""
    return self.constants and self.constants[layer]

  @property
  def batch_size(self) -> int:
    return self.length.shape[0]

  def __repr__(self) -> str:
    if is_spent(self):
      return f'Cache of {self.batch_size} rows, donated to an earlier call'
    return repr(summarize(self.layout, self))

  def __str__(self) -> str:
    return repr(self) if is_spent(self) else str(summarize(self.layout, self))

  def _repr_html_(self) -> str | None:
    if is_spent(self):
      return None
    return summarize(self.layout, self).display().html()


def check_alive(cache: Cache) -> None:
  """Raises ValueError for what is no cache, DonatedCacheError for a spent one.

  A cache is spent after a call that was given its buffers.
  """
  check_type(
    'cache',
    cache,
    Cache,
    'give the Cache that init_cache or an earlier call returned. Arguments '
    'come in the order config, params, cache, tokens.',
  )
  if is_spent(cache):
    raise DonatedCacheError(
      'This cache was donated to an earlier prefill, decode_step or '
      'generate, which reused its buffers. Use the cache that call '
      'returned, or pass donate=False to it.'
    )
  _check_place(cache)


def _check_place(cache: Cache) -> None:
  """Raises ValueError for a cache that left its mesh for one device.

  JAX (0.10 and 0.12) keeps the mesh in the type of an array that `device_put`
  moves to one device, and a program would be written for that mesh.
  """
  # Every step asks, so that a cache of no mesh must be let through at once.
  if cache.layout.rules is None or is_traced(cache.length):
    return
  if not isinstance(cache.length, jax.Array):
    return
  mesh = jax.typeof(cache.length).sharding.mesh
  if mesh.size > 1 and len(cache.length.sharding.device_set) == 1:
    raise ValueError(
      f'The cache was put from a mesh of {mesh.size} devices on one, and JAX '
      'takes it to be on the mesh. Move it through the host: '
      'jax.tree.map(jax.device_get, cache).'
    )


def is_spent(cache: Cache) -> bool:
  """Returns whether the buffers of a cache were given to another program."""
  # JAX may leave a donated buffer alone that no result could use, or that is
  # itself a result. Every program makes new books or new lengths.
  books = jax.tree.leaves(cache.books)
  return any(map(is_deleted, (cache.length, cache.overflow, *books)))


def is_deleted(array: Any) -> bool:
  """Returns whether the buffer of an array was given to another program."""
  concrete = isinstance(array, jax.Array) and not is_traced(array)
  return concrete and array.is_deleted()


def inspect(cache: Cache) -> Inspection:
  """Returns kind, filled slots, positions and bytes of every layer.

  Reads lengths and books (it waits for them), never a stream. Inside a trace,
  what is not known reads `?`.

  Args:
    cache: the cache to look at.
  """
  check_alive(cache)
  return summarize(cache.layout, cache)


def check(cache: Cache) -> None:
  """Raises ValueError if a row was given tokens that it refused, or no source.

  A row refuses tokens that do not fit, or that the vocabulary does not have.
  Waits for the device. `rewind` clears the flag.

  Args:
    cache: the cache to check.
  """
  check_alive(cache)
  if cache.source is not None:
    source = jax.device_get(cache.source)
    rows = np.flatnonzero((source < 0).all(axis=1)).tolist()
    if rows:
      raise ValueError(
        f'Rows {rows} hold no source, and their logits are NaN. Call prefill '
        'with encoded=kvjax.encode(config, params, source).'
      )
  overflow = jax.device_get(cache.overflow)
  if overflow.any():
    rows = np.flatnonzero(overflow).tolist()
    raise ValueError(
      f'Rows {rows} were given tokens beyond the capacity of '
      f'{cache.layout.capacity}, or outside the vocabulary; those were not '
      'written and the logits of these rows have been NaN since. Rewind the '
      'rows, or decode with a larger capacity.'
    )
