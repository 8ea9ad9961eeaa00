"""prefill, extend, decode_step: tokens and a cache in, logits and a cache out.

Each is a pure function. At the top of a program it is jitted, with the cache
donated where `donate` says so, and refuses what the host can know to be wrong
before tracing. Inside a caller's own jit it is plain code, and `donate` is
accepted and ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from kvjax.decoding.advance import advance
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_chunk, check_step_token
from kvjax.decoding.options import DEFAULT, DecodeOptions, with_kernel
from kvjax.decoding.program import program
from kvjax.decoding.source import write_source
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import ModelConfig, check_layers
from kvjax.models.decoder import unembed
from kvjax.models.encoder import Encoded
from kvjax.renamed import renamed_arguments

_renamed = renamed_arguments(
  absorb="options=kvjax.DecodeOptions(form='absorbed' or 'expanded')",
  block='options=kvjax.DecodeOptions(block=...)',
)


@_renamed
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
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
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
    kernel: that must attend, a name of `kvjax.kernels.KERNELS` or a
      `kvjax.kernels.Kernel`; None for the fastest.
    options: further choices that change speed, not results.

  Returns:
    Float32 logits `[B, V]` (NaN in a row without tokens) and the new cache.

  Raises:
    ValueError: the tokens do not fit or are outside the vocabulary, or params
      or cache are of another config.
    DonatedCacheError: the cache was given to an earlier call.
  """
  tokens, is_token = check_chunk(
    config, cache, tokens, lengths, padding, encoded
  )
  options = with_kernel(options, kernel)
  return _prefill(
    config, params, cache, tokens, is_token, encoded, options, donate=donate
  )


@overload
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
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
  attention_layers: tuple[()] = (),
) -> tuple[jax.Array, Cache]: ...
@overload
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
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
  attention_layers: Sequence[int],
) -> tuple[jax.Array, Cache, tuple[tuple[jax.Array, jax.Array], ...]]: ...
@_renamed
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
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
  attention_layers: Sequence[int] = (),
) -> tuple[Any, ...]:
  """Feeds any number of tokens to a warm cache and returns all their logits.

  Args:
    config: the model.
    params: its parameters.
    cache: empty or warm.
    tokens: int `[B, T]`; a negative id is padding.
    lengths: int `[B]`, tokens of each row; None for T.
    padding: 'right' or 'left', where a shorter row has its padding.
    encoded: the source of an encoder-decoder, as in `prefill`.
    donate: reuse the buffers of `cache`.
    kernel: that must attend, as in `prefill`.
    options: further choices that change speed, not results.
    attention_layers: layers whose weights are returned as well.

  Returns:
    Float32 logits `[B, T, V]` and the new cache; with `attention_layers`, also
    a tuple of weights `[B, N, T, S]` and slot positions `[B, 1 | K, S]`.

  Raises:
    ValueError: the tokens do not fit or are outside the vocabulary, or params
      or cache are of another config.
    DonatedCacheError: the cache was given to an earlier call.
  """
  tokens, is_token = check_chunk(
    config, cache, tokens, lengths, padding, encoded
  )
  attention_layers = check_layers(config, attention_layers)
  logits, cache, weights = _extend(
    config,
    params,
    cache,
    tokens,
    is_token,
    encoded,
    with_kernel(options, kernel),
    attention_layers,
    donate=donate,
  )
  return (logits, cache, weights) if attention_layers else (logits, cache)


@_renamed
def decode_step(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  token: jax.Array,
  active: jax.Array | None = None,
  *,
  donate: bool = True,
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
) -> tuple[jax.Array, Cache]:
  """Feeds one token a row; never waits for the device.

  A token that does not fit, or that the vocabulary does not have, is written
  nowhere: the row's logits are NaN and its `overflow` flag is set. They are NaN
  too where a model with an encoder has read no source (`check` raises on both).

  Args:
    config: the model.
    params: its parameters.
    cache: warm.
    token: int `[B]`; a negative id is no token.
    active: bool `[B]`, rows that take part; None for all.
    donate: reuse the buffers of `cache`, which cannot be used again.
    kernel: that must attend, as in `prefill`.
    options: further choices that change speed, not results.

  Returns:
    Float32 logits `[B, V]` and the new cache.

  Raises:
    ValueError: an argument is of another shape, dtype or config, the host
      knows an id outside the vocabulary, or a source has no room.
    DonatedCacheError: the cache was given to an earlier call.
  """
  token = check_step_token(config, cache, token, active)
  options = with_kernel(options, kernel)
  return _decode_step(
    config, params, cache, token, active, options, donate=donate
  )


@program(static=('config', 'options'), by_rows=(0,))
def _prefill(config, params, cache, tokens, is_token, encoded, options):
  with options.applied():
    if encoded is not None:
      cache = write_source(config, params, cache, encoded)
    x, cache, _ = advance(config, params, cache, tokens, is_token, options)
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    last = jnp.max(jnp.where(is_token, steps, -1), axis=1)
    x = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)
    logits = unembed(config, params, x)[:, 0]
    return jnp.where((last >= 0)[:, None], logits, jnp.nan), cache


@program(static=('config', 'options', 'attention_layers'), by_rows=(0, 2))
def _extend(
  config,
  params,
  cache,
  tokens,
  is_token,
  encoded,
  options,
  attention_layers,
):
  with options.applied():
    if encoded is not None:
      cache = write_source(config, params, cache, encoded)
    x, cache, weights = advance(
      config, params, cache, tokens, is_token, options, attention_layers
    )
    return unembed(config, params, x), cache, weights


@program(static=('config', 'options'), by_rows=(0,))
def _decode_step(config, params, cache, token, active, options):
  is_token = token >= 0
  if active is not None:
    is_token &= active
  with options.applied():
    x, cache, _ = advance(
      config, params, cache, token[:, None], is_token[:, None], options
    )
    return unembed(config, params, x)[:, 0], cache
