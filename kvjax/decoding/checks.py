"""What the host can refuse before anything is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.decoding.cache import Cache, check_alive
from kvjax.decoding.tracing import is_traced
from kvjax.models.config import ModelConfig
from kvjax.models.encoder import Encoded
from kvjax.models.uncached import check_tokens, token_mask


def check_call(
  config: ModelConfig,
  cache: Cache,
  tokens: jax.Array,
  lengths: Any,
  padding: str,
  encoded: Encoded | None,
) -> jax.Array:
  """Returns bool `[B, T]`, which ids are tokens; refuses what cannot be fed.

  Waits for the lengths of the cache, where they are not abstract.

  Raises:
    ValueError: the tokens have another shape or dtype, or do not fit, or a
      source is missing.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_alive(cache)
  check_shape('tokens', tokens, (cache.batch_size, None))
  if config.encoder is None or encoded is not None or cache.cross is None:
    check_tokens(config, tokens, encoded)
  check_source(config, cache, encoded)
  if not tokens.shape[1]:
    raise ValueError(
      f'tokens have shape {tokens.shape}: feed at least one a row (-1 where '
      'a row has none).'
    )
  count = _host_counts(tokens, lengths)
  is_token = token_mask(tokens, lengths, padding)
  if not is_traced(is_token):
    count = np.asarray(is_token).sum(axis=1)
  if count is None:
    return is_token
  limit = cache.layout.limit
  if limit is not None and count.max(initial=0) > limit:
    raise ValueError(_room(int(count.max()), 0, limit))
  if not is_traced(cache.length):
    check_room(cache, count)
  return is_token


def check_shape(
  name: str, array: jax.Array, shape: tuple[int | None, ...]
) -> None:
  """Raises ValueError if an array has another shape; None stands for any."""
  fits = len(array.shape) == len(shape) and all(
    want in (None, size) for want, size in zip(shape, array.shape, strict=True)
  )
  if not fits:
    wanted = ', '.join('any' if size is None else str(size) for size in shape)
    raise ValueError(
      f'{name} has shape {list(array.shape)}; it must be [{wanted}]: one row '
      'for each row of the cache.'
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
    if known and (cache.source is None or (np.asarray(cache.source) < 0).all()):
      raise ValueError(f'The cache holds no source yet. {fix}')
  elif encoded.positions.shape[0] != cache.batch_size:
    raise ValueError(
      f'encoded has {encoded.positions.shape[0]} rows and the cache '
      f'{cache.batch_size}: encode one source a row.'
    )


def _host_counts(tokens, lengths) -> np.ndarray | None:
  """Returns new tokens a row as the host knows them; None while tracing."""
  batch, width = tokens.shape
  if lengths is None:
    return np.full(batch, width)
  if is_traced(lengths):
    return None
  lengths = np.asarray(lengths)
  if lengths.shape != (batch,) or not np.issubdtype(lengths.dtype, np.integer):
    raise ValueError(
      f'lengths have shape {lengths.shape} and dtype {lengths.dtype}; they '
      f'must be {batch} integers, one a row.'
    )
  if lengths.min(initial=0) < 0 or lengths.max(initial=0) > width:
    raise ValueError(
      f'lengths={lengths.tolist()} must be between 0 and the {width} tokens '
      'given.'
    )
  return lengths


def check_room(cache: Cache, count: np.ndarray) -> None:
  """Raises ValueError if a row has no room for `count [B]` more tokens.

  Waits for the lengths of the cache.
  """
  count, limit = np.asarray(count, np.int32), cache.layout.limit
  have = np.asarray(cache.length)
  if limit is not None:
    for row in np.flatnonzero((have + count > limit) & (count > 0)):
      room = _room(int(count[row]), int(have[row]), limit)
      raise ValueError(f'Row {row}: {room}')
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    # Also where a caller's jit closes over a cache whose lengths are known.
    with jax.ensure_compile_time_eval():
      fits = np.asarray(kind.has_room(book, cache.length, jnp.asarray(count)))
    for row in np.flatnonzero(~fits):
      raise ValueError(
        f'Row {row}: out of pages for {count[row]} more tokens after '
        f'{have[row]}. Nothing was written. Give the pool more pages, or '
        'free some by rewinding rows that are done.'
      )


def _room(count: int, have: int, limit: int) -> str:
  return (
    f'{count} tokens do not fit: the cache holds {have} of its capacity of '
    f'{limit}. Nothing was written. Feed at most {limit - have}, rewind, or '
    'allocate more with init_cache(capacity=...).'
  )
