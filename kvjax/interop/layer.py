"""One layer's attention through a cache, for a module that is not kvjax's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.caches.kind import Kind
from kvjax.decoding import cache as caches
from kvjax.decoding.advance import Options, evict, place
from kvjax.decoding.cache import Cache
from kvjax.decoding.layer import read, remember
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.codecs import Codec


def init_cache(
  variant: Grouped | Latent,
  batch_size: int,
  capacity: int,
  dtype: Any = 'float32',
  *,
  kind: Kind | None = None,
  codec: Codec | None = None,
  rotary_length: int | None = None,
) -> Cache:
  """Returns an empty cache of one layer; arguments as in `kvjax.init_cache`."""
  config = ModelConfig(1, 1, (Layer(variant, MLP(1)),))
  return caches.init_cache(
    config,
    batch_size,
    capacity,
    dtype,
    kinds=kind,
    codec=codec,
    rotary_length=rotary_length,
  )


def attend(
  variant: Grouped | Latent,
  params: Mapping[str, Any],
  cache: Cache,
  x: jax.Array,
  active: jax.Array | None = None,
  *,
  absorb: bool | None = None,
  kernel: str | None = None,
) -> tuple[jax.Array, Cache]:
  """Feeds activations through a layer's attention and its cache. Pure.

  Args:
    variant: the attention.
    params: its parameters.
    cache: of `init_cache`.
    x: `[B, T, D]` of the new tokens.
    active: bool `[B, T]`, which of them are tokens; None for all.
    absorb: form of latent attention; None for the cheaper one.
    kernel: that must attend; None for the fastest.

  Returns:
    `[B, T, D]`, NaN in rows whose tokens did not fit, and the new cache.

  Raises:
    ValueError: the kind evicts between fewer tokens than T.
  """
  chex.assert_shape(x, (cache.batch_size, None, None))
  chunk, tokens = cache.layout.chunk, x.shape[1]
  if chunk is not None and chunk < tokens:
    raise ValueError(
      f'{tokens} tokens at once: this cache evicts every {chunk}. Feed at '
      f'most {chunk} a call, or give the kind slack={tokens - 1}.'
    )
  (memory,) = cache.layout.stores
  if memory is None:
    raise ValueError('The layer shares its keys and values: it has no cache.')
  held = jnp.ones(x.shape[:2], bool) if active is None else active
  cache, (old,), (slots,), step = place(
    cache, held, Options(absorb, kernel=kernel)
  )
  (book,), (store,) = cache.books, cache.stores
  streams = variant.project_streams(params, x, step.table(variant.rotary, None))
  store, views = remember(memory, (old, book), slots, store, streams, step)
  y, reading = read(variant, params, x, views, memory.kind, None, step)
  book = evict(memory.kind, book, reading, step)
  cache = dataclasses.replace(cache, books=(book,), stores=(store,))
  return jnp.where(cache.overflow[:, None, None], jnp.nan, y), cache
