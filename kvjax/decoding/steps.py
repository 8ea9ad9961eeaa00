"""prefill, extend, decode_step: tokens and a cache in, logits and a cache out.

Each is a pure function. At the top of a program it is jitted, with the cache
donated where `donate` says so, and refuses what the host can know to be wrong
before tracing. Inside a caller's own jit it is plain code, and `donate` is
accepted and ignored.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from kvjax.context import using_kernel
from kvjax.decoding.advance import Options, advance, write_source
from kvjax.decoding.cache import Cache, check_alive, in_trace, is_traced
from kvjax.models.config import ModelConfig
from kvjax.models.decoder import unembed
from kvjax.models.encoder import Encoded
from kvjax.models.uncached import check_tokens, row_mask


def prefill(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: jax.Array,
  lengths: Any = None,
  *,
  padding: str = 'right',
  encoded: Encoded | None = None,
  donate: bool = True,
  absorb: bool | None = None,
  block: int | None = None,
  kernel: str | None = None,
) -> tuple[jax.Array, Cache]:
  """Feeds tokens and returns the logits of each row's last one.

  Args:
    config: the model.
    params: its parameters.
    cache: empty or warm.
    tokens: int `[B, T]`; a negative id is padding.
    lengths: int `[B]`, tokens of each row; None for T.
    padding: 'right' or 'left', where a shorter row has its padding.
    encoded: the source of an encoder-decoder; its keys and values are written
      here, once.
    donate: reuse the buffers of `cache`, which cannot be used again.
    absorb: form of latent attention; None for the cheaper one.
    block: slots attention reads at once; None for the kernel's choice.
    kernel: that must attend, of `kernels.KERNELS`; None for the fastest.

  Returns:
    Float32 logits `[B, V]` (NaN in a row without tokens) and the new cache.

  Raises:
    ValueError: the tokens do not fit, before anything is computed.
    DonatedCacheError: the cache was given to an earlier call.
  """
  held = _check(config, cache, tokens, lengths, padding, encoded)
  run = _choose(_prefill, donate)
  options = Options(absorb, block, kernel)
  return run(config, params, cache, tokens, held, encoded, options)


def extend(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: jax.Array,
  lengths: Any = None,
  *,
  padding: str = 'right',
  encoded: Encoded | None = None,
  donate: bool = False,
  absorb: bool | None = None,
  block: int | None = None,
  kernel: str | None = None,
  attention_layers: Sequence[int] = (),
) -> Any:
  """Feeds any number of tokens to a warm cache and returns all their logits.

  Args:
    config, params, cache, tokens, lengths, padding, encoded: as in `prefill`.
    donate: reuse the buffers of `cache`.
    absorb: form of latent attention; None for the cheaper one.
    block: slots attention reads at once; None for the kernel's choice.
    kernel: that must attend, of `kernels.KERNELS`; None for the fastest.
    attention_layers: layers whose weights are returned as well.

  Returns:
    Float32 logits `[B, T, V]` and the new cache; with `attention_layers`, also
    a tuple of weights `[B, N, T, S]` and slot positions `[B, 1 | K, S]`.

  Raises:
    ValueError: the tokens do not fit, before anything is computed.
    DonatedCacheError: the cache was given to an earlier call.
  """
  held = _check(config, cache, tokens, lengths, padding, encoded)
  layers = len(config.layers)
  if not all(0 <= index < layers for index in attention_layers):
    raise ValueError(
      f'attention_layers={tuple(attention_layers)} must lie in [0, {layers}),'
      ' the layers of the model.'
    )
  options = Options(absorb, block, kernel, tuple(attention_layers))
  run = _choose(_extend, donate)
  logits, cache, weights = run(
    config, params, cache, tokens, held, encoded, options
  )
  return (logits, cache, weights) if attention_layers else (logits, cache)


def decode_step(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  token: jax.Array,
  active: jax.Array | None = None,
  *,
  donate: bool = True,
  absorb: bool | None = None,
  block: int | None = None,
  kernel: str | None = None,
) -> tuple[jax.Array, Cache]:
  """Feeds one token a row; never waits for the device.

  A token that does not fit is written nowhere: the row's logits are NaN and
  its `overflow` flag is set. They are NaN too where a model with an encoder has
  read no source (`check` raises on both).

  Args:
    config: the model.
    params: its parameters.
    cache: warm.
    token: int `[B]`; a negative id is no token.
    active: bool `[B]`, rows that take part; None for all.
    donate: reuse the buffers of `cache`, which cannot be used again.
    absorb: form of latent attention; None for the cheaper one.
    block: slots attention reads at once; None for the kernel's choice.
    kernel: that must attend, of `kernels.KERNELS`; None for the fastest.

  Returns:
    Float32 logits `[B, V]` and the new cache.

  Raises:
    ValueError: the model has an encoder, and the cache no room for its source.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_alive(cache)
  chex.assert_shape(token, (cache.batch_size,))
  if cache.cross is None:
    check_source(config, cache)
  run = _choose(_decode_step, donate)
  options = Options(absorb, block, kernel)
  return run(config, params, cache, token, active, options)


def _check(config, cache, tokens, lengths, padding, encoded):
  """Returns bool `[B, T]`: which are tokens. Raises on what can be known."""
  check_alive(cache)
  chex.assert_shape(tokens, (cache.batch_size, None))
  if config.encoder is None or encoded is not None or cache.cross is None:
    check_tokens(config, tokens, encoded)
  check_source(config, cache, encoded)
  if not tokens.shape[1]:
    raise ValueError(
      f'tokens have shape {tokens.shape}: feed at least one a row (-1 where '
      'a row has none).'
    )
  count = _host_counts(tokens, lengths)
  held = row_mask(tokens, lengths, padding)
  if not is_traced(held):
    count = np.asarray(held).sum(axis=1)
  if count is None:
    return held
  limit = cache.layout.limit
  if limit is not None and count.max(initial=0) > limit:
    raise ValueError(_room(int(count.max()), 0, limit))
  if not is_traced(cache.length):
    check_room(cache, count)
  return held


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
      f'lengths={lengths.tolist()} must lie between 0 and the {width} tokens '
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


def _choose(run: Any, donate: bool) -> Any:
  """Returns plain code inside a trace, and a jitted function outside."""
  if in_trace():
    return run
  return _jitted(run, donate)


@functools.cache
def _jitted(run: Any, donate: bool) -> Any:
  return jax.jit(
    run,
    static_argnames=('config', 'options'),
    donate_argnames=('cache',) if donate else (),
  )


def _as_asked(run):
  """Traces `run` with the kernel that its options ask for."""

  @functools.wraps(run)
  def asked(*given):
    with using_kernel(given[-1].kernel):
      return run(*given)

  return asked


@_as_asked
def _prefill(config, params, cache, tokens, held, encoded, options):
  if encoded is not None:
    cache = write_source(config, params, cache, encoded)
  x, cache, _ = advance(config, params, cache, tokens, held, options)
  steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  last = jnp.max(jnp.where(held, steps, -1), axis=1)
  x = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)
  logits = unembed(config, params, x)[:, 0]
  return jnp.where((last >= 0)[:, None], logits, jnp.nan), cache


@_as_asked
def _extend(config, params, cache, tokens, held, encoded, options):
  if encoded is not None:
    cache = write_source(config, params, cache, encoded)
  x, cache, weights = advance(config, params, cache, tokens, held, options)
  return unembed(config, params, x), cache, weights


@_as_asked
def _decode_step(config, params, cache, token, active, options):
  held = token >= 0
  if active is not None:
    held &= active
  x, cache, _ = advance(
    config, params, cache, token[:, None], held[:, None], options
  )
  return unembed(config, params, x)[:, 0], cache
