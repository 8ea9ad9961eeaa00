"""What a call refuses: on the host before it is traced, or a row at a time."""

import dataclasses
import functools
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
from kvjax.decoding.allocate import is_leaf, store_spec
from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.tracing import computing, is_traced
from kvjax.models.config import ModelConfig, check_config
from kvjax.models.encoder import Encoded
from kvjax.models.initialize import check_params
from kvjax.models.uncached import check_encoded, token_mask


def accept(
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
  check_model(config, cache)
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
  is_token = token_mask(ids, check_lengths(ids, lengths), padding)
  check_ids('tokens', tokens, is_token, config.vocab_size)
  count = _known_counts(tokens, is_token, lengths)
  if count is None:
    return ids, is_token
  limit = cache.layout.limit
  if limit is not None and count.max(initial=0) > limit:
    raise ValueError(_room(int(count.max()), 0, limit))
  if not is_traced(cache.length):
    check_room(cache, count)
  return ids, is_token


def accept_step(
  config: ModelConfig, cache: Cache, token: jax.Array, active: Any
) -> jax.Array:
  """Returns ids `[B]`; refuses what cannot be fed, and waits for nothing.

  Raises:
    ValueError, DonatedCacheError: as `accept`, where the host knows.
  """
  check_model(config, cache)
  rows = (cache.batch_size,)
  check_array('token', token, rows, jnp.integer)
  if active is not None:
    check_array('active', active, rows, jnp.bool_)
  if cache.cross is None:
    check_source(config, cache)
  # An id on a device is not waited for, and neither is `active` there.
  if isinstance(token, np.ndarray) and not isinstance(active, jax.Array):
    is_token = (token >= 0) & (True if active is None else active)
    check_ids('token', token, is_token, config.vocab_size)
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


def check_model(config: ModelConfig, cache: Cache) -> None:
  """Raises what is wrong with the first arguments of a call, if anything is.

  Raises:
    ValueError: `config` is no config or `cache` no cache.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_config(config)
  check_alive(cache)


def check_made_for(
  config: ModelConfig, params: Mapping[str, Any], cache: Cache
) -> None:
  """Raises ValueError where params or cache were made for another config.

  Shapes are known while a program is traced, so a compiled program checks
  nothing.
  """
  check_params(config, params)
  fix = 'Allocate the cache with this config: init_cache(config, ...).'
  if len(cache.stores) != len(config.layers):
    raise ValueError(
      f'The cache was made for {len(cache.stores)} layers; the config has '
      f'{len(config.layers)}. {fix}'
    )
  for index, (layer, store) in enumerate(
    zip(config.layers, cache.layout.stores, strict=True)
  ):
    wanted = layer.attention.streams()
    names = [] if store is None else [name for name, _ in store.codecs]
    if names != list(wanted):
      raise ValueError(
        f'Layer {index} of the cache stores {names or "nothing"}; the config '
        f'stores {list(wanted) or "nothing"}. {fix}'
      )
    if store is None:
      continue
    spec = store_spec(layer.attention, store, cache.batch_size)
    for name, stream in wanted.items():
      if not _fits(spec[name], cache.stores[index][name]):
        raise ValueError(
          f'Layer {index} of the cache has another number of heads, or '
          f'another width, than the config: {stream.heads} heads of width '
          f'{stream.width} for {name!r}. {fix}'
        )
  if (config.encoder is None) and cache.cross is not None:
    raise ValueError(f'The cache holds a source; the config reads none. {fix}')


def _fits(spec: Any, leaves: Any) -> bool:
  """Returns whether a stream's leaves have the sizes of their spec.

  Rows, and the pages that rows share, are free.
  """
  wanted = jax.tree.leaves(spec, is_leaf=is_leaf)
  given = jax.tree.leaves(leaves)
  return len(wanted) == len(given) and all(
    len(want.axes) == leaf.ndim
    and all(
      axis in ('batch', 'pages') or size == leaf.shape[i]
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
  with computing():
    fits = jax.device_get(
      _have_room(
        cache.layout.kinds(), cache.books, cache.length, jax.device_put(count)
      )
    )
  for row in np.flatnonzero(~fits):
    raise ValueError(
      f'Row {row}: out of pages for {count[row]} more tokens after '
      f'{have[row]}. Nothing was written. Give the pool more pages, or '
      'free some by rewinding rows that are done.'
    )


# Compiled, as all arithmetic on a device is: outside a program each number that
# it needs would be an implicit transfer, which `jax.transfer_guard` forbids.
@functools.partial(jax.jit, static_argnums=0)
def _have_room(kinds, books, length, count):
  fits = jnp.ones(length.shape, bool)
  for kind, book in zip(kinds, books, strict=True):
    fits &= kind.has_room(book, length, count)
  return fits


def _room(count: int, have: int, limit: int) -> str:
  return (
    f'{count} tokens do not fit: the cache holds {have} of its capacity of '
    f'{limit}. Nothing was written. Feed at most {limit - have}, rewind, or '
    'allocate more with init_cache(capacity=...).'
  )


def refuse_unknown(
  config: ModelConfig, cache: Cache, tokens: jax.Array, is_token: jax.Array
) -> tuple[Cache, jax.Array]:
  """Returns the cache and `is_token [B, T]` without rows of unknown tokens.

  A row with an id outside the vocabulary is flagged, as one that does not fit.
  """
  unknown = is_token & unknown_ids(tokens, config.vocab_size)
  lost = jnp.any(unknown, axis=1)
  cache = dataclasses.replace(cache, overflow=cache.overflow | lost)
  return cache, is_token & ~lost[:, None]
