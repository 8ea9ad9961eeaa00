"""One layer's attention through a cache, for a module that is not kvjax's."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_array
from kvjax.attention.variant import Variant
from kvjax.caches.kind import Kind
from kvjax.decoding import allocate
from kvjax.decoding.advance import place_tokens
from kvjax.decoding.cache import Cache
from kvjax.decoding.layer import LayerEntry, attend_through_cache
from kvjax.decoding.options import DEFAULT, DecodeOptions, with_kernel
from kvjax.kernels.kernel import Kernel
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.renamed import renamed_arguments
from kvjax.streams.codecs import Codecs


@renamed_arguments(kind='kinds=')
def init_cache(
  variant: Variant,
  batch_size: int,
  capacity: int,
  dtype: Any = 'float32',
  *,
  kinds: Kind | None = None,
  codec: Codecs = None,
  rotary_length: int | None = None,
) -> Cache:
  """Returns an empty cache of one layer.

  Args:
    variant: the layer's attention.
    batch_size: B rows.
    capacity: tokens a row can hold.
    dtype: of the streams.
    kinds: where tokens go; None for the default of the variant.
    codec: how tokens are stored; None for plain.
    rotary_length: length that chooses a rotary table; None for the capacity.
  """
  config = ModelConfig(1, 1, (Layer(variant, MLP(1)),))
  return allocate.init_cache(
    config,
    batch_size,
    capacity,
    dtype,
    kinds=kinds,
    codec=codec,
    rotary_length=rotary_length,
  )


@renamed_arguments(
  absorb="options=kvjax.DecodeOptions(form='absorbed' or 'expanded')"
)
def attend(
  variant: Variant,
  params: Mapping[str, Any],
  cache: Cache,
  x: jax.Array,
  active: jax.Array | None = None,
  *,
  kernel: str | Kernel | None = None,
  options: DecodeOptions = DEFAULT,
) -> tuple[jax.Array, Cache]:
  """Feeds activations through a layer's attention and its cache. Pure.

  Args:
    variant: the attention.
    params: its parameters.
    cache: of `init_cache`.
    x: `[B, T, D]` of the new tokens.
    active: bool `[B, T]`, which of them are tokens; None for all.
    kernel: that must attend, as in `kvjax.prefill`.
    options: further choices that change speed, not results.

  Returns:
    `[B, T, D]`, NaN in rows whose tokens did not fit, and the new cache.

  Raises:
    ValueError: x has another shape, or the kind evicts between fewer tokens
      than T.
  """
  check_array('x', x, (cache.batch_size, None, None), jnp.floating)
  piece = cache.layout.piece
  tokens = x.shape[1]
  if piece is not None and piece < tokens:
    raise ValueError(
      f'{tokens} tokens at once: this cache evicts every {piece}. Feed at '
      f'most {piece} a call, or give the kind slack={tokens - 1}.'
    )
  (store,) = cache.layout.stores
  if store is None:
    raise ValueError('The layer shares its keys and values: it has no cache.')
  is_token = jnp.ones(x.shape[:2], bool) if active is None else active
  options = with_kernel(options, kernel)
  with options.applied():
    cache, placement = place_tokens(cache, is_token, options, [variant.rotary])
    entry = LayerEntry(
      store=store,
      book_before=placement.books_before[0],
      book=cache.books[0],
      slots=placement.slots[0],
      leaves=cache.stores[0],
      constant=cache.constant(0),
    )
    y, result = attend_through_cache(variant, params, x, entry, placement.state)
  cache = dataclasses.replace(
    cache, books=(result.book,), stores=(result.leaves,)
  )
  return jnp.where(cache.overflow[:, None, None], jnp.nan, y), cache
