"""prefill, extend, decode_step: tokens and a cache in, logits and a cache out.

Each is a pure function. At the top of a program it is jitted, with the cache
donated where `donate` says so, and refuses what the host can know to be wrong
before tracing. Inside a caller's own jit it is plain code, and `donate` is
accepted and ignored.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp

from kvjax.array_checks import check_array, check_ids
from kvjax.decoding.advance import advance
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import (
  check_call,
  check_made_for,
  check_model,
  check_source,
)
from kvjax.decoding.options import DEFAULT, DecodeOptions
from kvjax.decoding.program import program
from kvjax.decoding.source import write_source
from kvjax.fields import is_whole
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import ModelConfig
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
    ValueError: the tokens do not fit, are outside the vocabulary, or params
      or cache are of another config, before anything is computed.
    DonatedCacheError: the cache was given to an earlier call.
  """
  tokens, is_token = check_call(
    config, cache, tokens, lengths, padding, encoded
  )
  options = options.with_kernel(kernel)
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
    config, params, cache, tokens, lengths, padding, encoded: as in `prefill`.
    donate: reuse the buffers of `cache`.
    kernel, options: as in `prefill`.
    attention_layers: layers whose weights are returned as well.

  Returns:
    Float32 logits `[B, T, V]` and the new cache; with `attention_layers`, also
    a tuple of weights `[B, N, T, S]` and slot positions `[B, 1 | K, S]`.

  Raises:
    ValueError: the tokens do not fit, are outside the vocabulary, or params
      or cache are of another config, before anything is computed.
    DonatedCacheError: the cache was given to an earlier call.
  """
  tokens, is_token = check_call(
    config, cache, tokens, lengths, padding, encoded
  )
  attention_layers = _check_layers(config, attention_layers)
  logits, cache, weights = _extend(
    config,
    params,
    cache,
    tokens,
    is_token,
    encoded,
    options.with_kernel(kernel),
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
    kernel, options: as in `prefill`.

  Returns:
    Float32 logits `[B, V]` and the new cache.

  Raises:
    ValueError: the token or `active` has another shape or dtype, the host
      knows that a token is outside the vocabulary, params or cache are of
      another config, or the model has an encoder and the cache no room for
      its source.
    DonatedCacheError: the cache was given to an earlier call.
  """
  check_model(config, cache)
  rows = (cache.batch_size,)
  check_array('token', token, rows, jnp.integer)
  token = check_ids('token', token, config.vocab_size, wait=False)
  if active is not None:
    check_array('active', active, rows, jnp.bool_)
  if cache.cross is None:
    check_source(config, cache)
  options = options.with_kernel(kernel)
  return _decode_step(
    config, params, cache, token, active, options, donate=donate
  )


def _check_layers(config: ModelConfig, layers: Any) -> tuple[int, ...]:
  """Returns indices of layers as a tuple; ValueError for what is none."""
  indices = tuple(layers) if isinstance(layers, Iterable) else None
  count = len(config.layers)
  if indices is None or not all(
    is_whole(index) and 0 <= index < count for index in indices
  ):
    raise ValueError(
      f'attention_layers={layers!r} must be indices in [0, {count}), the '
      'layers of the model.'
    )
  return indices


@program(static=('config', 'options'))
def _prefill(config, params, cache, tokens, is_token, encoded, options):
  check_made_for(config, params, cache)
  with options.applied():
    if encoded is not None:
      cache = write_source(config, params, cache, encoded)
    x, cache, _ = advance(config, params, cache, tokens, is_token, options)
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    last = jnp.max(jnp.where(is_token, steps, -1), axis=1)
    x = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, None, None], axis=1)
    logits = unembed(config, params, x)[:, 0]
    return jnp.where((last >= 0)[:, None], logits, jnp.nan), cache


@program(static=('config', 'options', 'attention_layers'))
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
  check_made_for(config, params, cache)
  with options.applied():
    if encoded is not None:
      cache = write_source(config, params, cache, encoded)
    x, cache, weights = advance(
      config, params, cache, tokens, is_token, options, attention_layers
    )
    return unembed(config, params, x), cache, weights


@program(static=('config', 'options'))
def _decode_step(config, params, cache, token, active, options):
  is_token = token >= 0
  if active is not None:
    is_token &= active
  check_made_for(config, params, cache)
  with options.applied():
    x, cache, _ = advance(
      config, params, cache, token[:, None], is_token[:, None], options
    )
    return unembed(config, params, x)[:, 0], cache
