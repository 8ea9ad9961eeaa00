"""The source of an encoder-decoder in a cache: written once, then read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_shapes
from kvjax.decoding.reading import CallState, attend_to_views
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.encoder import Encoded
from kvjax.streams.view import Streams, fresh_view


def write_source(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  encoded: Encoded,
) -> Cache:
  """Returns the cache with keys and values of the source in every layer."""
  check_shapes(config, params, cache)
  cross = []
  for index, layer in enumerate(config.layers):
    if layer.cross is None:
      cross.append({})
      continue
    cross_params = params['layers'][index]['cross']
    streams = layer.cross.project_streams(cross_params, encoded.hidden, None)
    if cache.cross is not None:
      streams = {
        name: x.astype(cache.cross[index][name].dtype)
        for name, x in streams.items()
      }
    cross.append(streams)
  return dataclasses.replace(
    cache, cross=tuple(cross), source=encoded.positions
  )


def cross_attention(
  layer: Layer,
  layer_params: Mapping[str, Any],
  streams: Streams | None,
  positions: jax.Array | None,
) -> Callable[[jax.Array], jax.Array] | None:
  """Returns attention to the source's keys and values, written once.

  Args:
    layer: of the decoder.
    layer_params: its parameters.
    streams: of the source in this layer, or None.
    positions: int32 `[B, S]` of the source's tokens, or None.
  """
  variant = layer.cross
  if variant is None or streams is None or positions is None:
    return None
  view = fresh_view(streams, positions)

  def attend(x):
    # A source is seen whole, so the positions of its queries do not matter.
    nothing = jnp.zeros(len(x), jnp.int32)
    state = CallState(
      positions=jnp.zeros(x.shape[:2], jnp.int32),
      before=nothing,
      after=nothing,
      table=lambda rotary, limit: None,
    )
    y, _ = attend_to_views(variant, layer_params['cross'], x, (view,), state)
    return y

  return attend
