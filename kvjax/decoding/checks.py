"""What a call refuses: on the host before it is traced, or a row at a time."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.arguments import (
  check_array,
  check_ids,
  check_lengths,
  narrow_ids,
  unknown_ids,
)
from kvjax.caches.array_spec import is_leaf
from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import (
  cross_spec,
  cross_streams,
  store_spec,
)
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.tracing import computing, is_traced
from kvjax.mesh.region import on_every_device
from kvjax.models.config import ModelConfig, check_config
from kvjax.models.encoder import Encoded
from kvjax.models.initialize import check_params
from kvjax.models.uncached import check_encoded, token_mask
from kvjax.streams.stream import Stream

REALLOCATE = 'Allocate the cache with this config: init_cache(config, ...).'
FREE_AXES = ('batch', 'pages', 'source')  # whose sizes are not the config's


def check_chunk(
  config: ModelConfig,
  cache: Cache,
  tokens: jax.Array,
  lengths: Any,
  padding: str,
  encoded: Encoded | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns ids `[B, T]` and bool `[B, T]`, which of them are tokens.

  Waits for the lengths of the cache, where they are not abstract.

  Raises:
    ValueError: the tokens have another shape or dtype, are outside the
      vocabulary, or do not fit, or a source is missing.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_config_and_cache(config, cache)
  check_array('tokens', tokens, (cache.batch_size, None), jnp.integer)
  if config.encoder is None or encoded is not None or cache.cross is None:
    check_encoded(config, encoded, cache.batch_size)
  check_source(config, cache, encoded)
  if not tokens.shape[1]:
    raise ValueError(
      f'tokens have shape {tokens.shape}: feed at least one a row (-1 where '
      'a row has none).'
    )
  ids = narrow_ids(tokens, config.vocab_size)
  lengths = check_lengths(ids, lengths)
  is_token = token_mask(ids, lengths, padding)
  if is_traced(lengths):
    ids, is_token = _spoil_rows(config, ids, is_token, lengths)
  check_ids('tokens', tokens, is_token, config.vocab_size, config.refused_ids)
  count = _known_counts(tokens, is_token, lengths)
  if count is None:
    return ids, is_token
  limit = cache.layout.limit
  if limit is not None and count.max(initial=0) > limit:
    raise ValueError(_room(int(count.max()), 0, limit))
  if not is_traced(cache.length):
    check_room(cache, count)
  return ids, is_token


def _spoil_rows(
  config: ModelConfig, ids: jax.Array, is_token: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gives rows of impossible lengths ids that the vocabulary does not have.

  Inside a trace nothing can be refused: such a row is flagged, and not written.
  """
  wrong = ((lengths < 0) | (lengths > ids.shape[1]))[:, None]
  # Before the cast, which would wrap an id to one that the vocabulary has.
  wrong |= unknown_ids(ids, config.vocab_size, config.refused_ids)
  ids = jnp.where(wrong, config.vocab_size, ids.astype(jnp.int32))
  return ids, is_token | wrong


def check_step_token(
  config: ModelConfig, cache: Cache, token: jax.Array, active: Any
) -> jax.Array:
  """Returns ids `[B]`; refuses what cannot be fed, and waits for nothing.

  Raises:
    ValueError, DonatedCacheError: as `check_chunk`, where the host knows.
  """
  check_config_and_cache(config, cache)
  rows = (cache.batch_size,)
  check_array('token', token, rows, jnp.integer)
  if active is not None:
    check_array('active', active, rows, jnp.bool_)
  if cache.cross is None:
    check_source(config, cache)
  # An id on a device is not waited for, and neither is `active` there.
  if isinstance(token, np.ndarray) and not isinstance(active, jax.Array):
    is_token = (token >= 0) & (True if active is None else active)
    check_ids('token', token, is_token, config.vocab_size, config.refused_ids)
  return narrow_ids(token, config.vocab_size)


def _known_counts(
  tokens: jax.Array, is_token: jax.Array, lengths: Any
) -> np.ndarray | None:
  """Returns new tokens a row as the host knows them; None while tracing."""
  if not is_traced(is_token):
    return jax.device_get(is_token).sum(axis=1)
  if lengths is None:  # negative ids may make it fewer
    return np.full(tokens.shape[0], tokens.shape[1])
  return None if is_traced(lengths) else np.asarray(lengths)


def check_config_and_cache(config: ModelConfig, cache: Cache) -> None:
  """Checks the first arguments of a call, of which nothing is computed.

  Raises:
    ValueError: `config` is no config or `cache` no cache.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_config(config)
  check_alive(cache)


def check_shapes(
  config: ModelConfig, params: Mapping[str, Any], cache: Cache
) -> None:
  """Raises ValueError where params or cache were made for another config.

  Shapes are known while a program is traced, so a compiled program checks
  nothing.
  """
  check_params(config, params)
  if len(cache.stores) != len(config.layers):
    raise ValueError(
      f'The cache was made for {len(cache.stores)} layers; the config has '
      f'{len(config.layers)}. {REALLOCATE}'
    )
  if config.encoder is None and cache.cross is not None:
    raise ValueError(
      f'The cache holds a source; the config reads none. {REALLOCATE}'
    )
  cross = cross_spec(config, cache.batch_size, 1)
  for index, (layer, store) in enumerate(
    zip(config.layers, cache.layout.stores, strict=True)
  ):
    place = f'Layer {index} of the cache'
    streams, leaves = layer.attention.streams(), cache.stores[index]
    _check_names(place, streams, leaves)
    if store is not None:
      spec = store_spec(layer.attention, store, cache.batch_size)
      _check_widths(place, streams, spec, leaves)
    if cross is not None and cache.cross is not None:
      place = f'Cross-attention {index} of the cache'
      streams, leaves = cross_streams(layer.cross), cache.cross[index]
      _check_names(place, streams, leaves)
      _check_widths(place, streams, cross[index], leaves)


def _check_names(
  place: str, streams: Mapping[str, Stream], leaves: Mapping[str, Any]
) -> None:
  if leaves.keys() != streams.keys():
    raise ValueError(
      f'{place} stores {sorted(leaves) or "nothing"}; the config stores '
      f'{sorted(streams) or "nothing"}. {REALLOCATE}'
    )


def _check_widths(
  place: str,
  streams: Mapping[str, Stream],
  spec: Mapping[str, Any],
  leaves: Mapping[str, Any],
) -> None:
  for name, stream in streams.items():
    if not _fits(spec[name], leaves[name]):
      raise ValueError(
        f'{place} has another number of heads, or another width, than the '
        f'config: {stream.heads} heads of width {stream.width} for {name!r}. '
        f'{REALLOCATE}'
      )


def _fits(spec: Any, leaves: Any) -> bool:
  """Returns whether a stream's leaves have the sizes of their spec.

  Rows, the pages that rows share, and positions of the source are free.
  """
  wanted = jax.tree.leaves(spec, is_leaf=is_leaf)
  given = jax.tree.leaves(leaves)
  return len(wanted) == len(given) and all(
    len(want.axes) == leaf.ndim
    and all(
      axis in FREE_AXES or size == leaf.shape[i]
      for i, (size, axis) in enumerate(zip(want.shape, want.axes, strict=True))
    )
    for want, leaf in zip(wanted, given, strict=True)
  )


def check_source(
  config: ModelConfig, cache: Cache, encoded: Encoded | None = None
) -> None:
  """Raises ValueError if a model with an encoder has no source to read.

  Waits for the positions of the source where `encoded` brings none.
  """
  if config.encoder is None:
    return
  fix = 'Call prefill with encoded=kvjax.encode(config, params, source).'
  if encoded is None:
    known = cache.source is None or not is_traced(cache.source)
    if known and (
      cache.source is None or (jax.device_get(cache.source) < 0).all()
    ):
      raise ValueError(f'The cache holds no source yet. {fix}')


def check_room(cache: Cache, count: np.ndarray) -> None:
  """Raises ValueError if a row has no room for `count [B]` more tokens.

  Waits for the lengths of the cache.
  """
  count, limit = np.asarray(count, np.int32), cache.layout.limit
  have = jax.device_get(cache.length)
  if limit is not None:
    for row in np.flatnonzero((have + count > limit) & (count > 0)):
      room = _room(int(count[row]), int(have[row]), limit)
      raise ValueError(f'Row {row}: {room}')
  layout = cache.layout
  if all(type(kind).has_room is Kind.has_room for kind in layout.kinds()):
    return  # nothing but the limit can be short
  with computing():
    fits = jax.device_get(_have_room(cache, jax.device_put(count)))
  for row in np.flatnonzero(~fits):
    raise ValueError(
      f'Row {row}: out of pages for {count[row]} more tokens after '
      f'{have[row]}. Nothing was written. Give the pool more pages, or '
      'free some by rewinding rows that are done.'
    )


# Compiled, as all arithmetic on a device is: outside a program each number that
# it needs would be an implicit transfer, which `jax.transfer_guard` forbids.
@jax.jit
def _have_room(cache, count):
  fits = jnp.ones(count.shape, bool)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    fits &= kind.has_room(book, cache.length, count)
  return fits


def _room(count: int, have: int, limit: int) -> str:
  return (
    f'{count} tokens do not fit: the cache holds {have} of its capacity of '
    f'{limit}. Nothing was written. Feed at most {limit - have}, rewind, or '
    'allocate more with init_cache(capacity=...).'
  )


def drop_rows_of_unknown_ids(
  config: ModelConfig, cache: Cache, tokens: jax.Array, is_token: jax.Array
) -> tuple[Cache, jax.Array]:
  """Returns the cache and `is_token [B, T]` without rows of unknown tokens.

  A row with an id outside the vocabulary is flagged, as one that does not fit.
  """

  def drop(overflow, tokens, is_token):
    unknown = is_token & unknown_ids(
      tokens, config.vocab_size, config.refused_ids
    )
    lost = jnp.any(unknown, axis=1)
    return overflow | lost, is_token & ~lost[:, None]

  overflow, is_token = on_every_device(drop)(cache.overflow, tokens, is_token)
  return dataclasses.replace(cache, overflow=overflow), is_token
