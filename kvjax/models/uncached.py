"""The uncached model: the reference that every cached path must equal."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from kvjax.attention.reference import plain_attention
from kvjax.attention.rotary import rotary_table
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import embed, run_layer, unembed
from kvjax.models.encoder import Encoded
from kvjax.streams.codecs import Codec


def forward(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  *,
  lengths: Any = None,
  padding: str = 'right',
  encoded: Encoded | None = None,
  rotary_length: int | None = None,
  codec: Codec | None = None,
  absorb: bool = False,
  attention_layers: Sequence[int] = (),
) -> Any:
  """Returns logits of a whole sequence, with a plain masked softmax.

  Args:
    config: the model.
    params: its parameters.
    tokens: int `[B, T]`.
    lengths: int `[B]`, tokens of each row; None for T.
    padding: 'right' or 'left', where a shorter row has its padding.
    encoded: what `encode` returned, for an encoder-decoder.
    rotary_length: planned length, for rotary tables that depend on it; None
      for T.
    codec: streams pass through it once, as a cache would store them.
    absorb: latent attention in its absorbed form.
    attention_layers: layers whose weights are returned as well.

  Returns:
    Float32 logits `[B, T, V]`; with `attention_layers`, also a tuple of their
    weights `[B, N, T, T]`.
  """
  chex.assert_rank(tokens, 2)
  check_tokens(config, tokens, encoded)
  positions = row_positions(tokens, lengths, padding)
  check_positions(config, tokens.shape[1])
  logits, weights = _forward(
    config,
    params,
    tokens,
    positions,
    encoded,
    rotary_length=rotary_length or tokens.shape[1],
    codec=codec,
    absorb=absorb,
    attention_layers=tuple(attention_layers),
  )
  return (logits, weights) if attention_layers else logits


def row_positions(tokens: jax.Array, lengths: Any, padding: str) -> jax.Array:
  """Returns int32 `[B, T]`: 0, 1, ... on a row's tokens, -1 on padding.

  A negative token id is padding too.
  """
  held = row_mask(tokens, lengths, padding)
  count = jnp.cumsum(held.astype(jnp.int32), axis=1)
  return jnp.where(held, count - 1, -1)


def row_mask(tokens: jax.Array, lengths: Any, padding: str) -> jax.Array:
  """Returns bool `[B, T]`: where a row has a token."""
  if padding not in ('right', 'left'):
    raise ValueError(f"padding={padding!r} must be 'right' or 'left'.")
  held = tokens >= 0
  if lengths is None:
    return held
  lengths = jnp.asarray(lengths, jnp.int32)
  chex.assert_shape(lengths, tokens.shape[:1])
  steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
  if padding == 'left':
    steps = tokens.shape[1] - 1 - steps
  return held & (steps < lengths[:, None])


def check_tokens(
  config: ModelConfig, tokens: jax.Array, encoded: Encoded | None
) -> None:
  """Raises ValueError on ids that are no integers or a missing source."""
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(f'tokens have dtype {tokens.dtype}; ids are integers.')
  if (config.encoder is None) != (encoded is None):
    need = 'has no encoder' if config.encoder is None else 'has an encoder'
    fix = (
      'drop encoded='
      if config.encoder is None
      else ('pass encoded=kvjax.encode(config, params, source)')
    )
    raise ValueError(f'The model {need}: {fix}.')


def check_positions(config: ModelConfig, tokens: int) -> None:
  """Raises ValueError if learned positions do not reach that far."""
  if config.positions and tokens > config.positions:
    raise ValueError(
      f'{tokens} tokens exceed the {config.positions} learned positions of '
      'the model. Use fewer tokens.'
    )


@functools.partial(
  jax.jit,
  static_argnums=0,
  static_argnames=('rotary_length', 'codec', 'absorb', 'attention_layers'),
)
def _forward(
  config,
  params,
  tokens,
  positions,
  encoded,
  *,
  rotary_length,
  codec,
  absorb,
  attention_layers,
):
  x = embed(config, params, tokens, positions)
  kept, weights = {}, {}
  for index, (layer, p) in enumerate(
    zip(config.layers, params['layers'], strict=True)
  ):
    with jax.named_scope(f'layer_{index}'):
      x, (streams, seen) = _layer(
        config,
        layer,
        p,
        x,
        positions,
        encoded,
        kept,
        index,
        params.get('relative'),
        rotary_length,
        codec,
        absorb,
      )
    kept = kept | {index: streams}
    if index in attention_layers:
      weights = weights | {index: seen}
  logits = unembed(config, params, x)
  return logits, tuple(weights[i] for i in attention_layers)


def _layer(
  config,
  layer,
  p,
  x,
  positions,
  encoded,
  kept,
  index,
  relative,
  rotary_length,
  codec,
  absorb,
):
  def attention(h):
    variant, q = layer.attention, p['attention']
    table = None
    if variant.rotary is not None:
      table = rotary_table(variant.rotary, positions, rotary_length)
    if variant.shared_from is None:
      streams = through_codec(
        variant, variant.project_streams(q, h, table), codec
      )
    else:
      streams = kept[config.owner(index)]
    y, weights = attend_plainly(
      variant, q, h, table, streams, positions, positions, relative, absorb
    )
    return y, (streams, weights)

  cross = None
  if layer.cross is not None:
    cross = functools.partial(cross_plainly, layer, p, encoded)
  return run_layer(
    layer, config.norm, p, x, attention, cross, config.residual_scale
  )


def through_codec(variant: Any, streams: Any, codec: Codec | None) -> Any:
  """Returns streams as a cache with that codec would give them back."""
  if codec is None:
    return streams
  quantize = {name: s.quantize for name, s in variant.streams().items()}
  return {
    name: codec.decode(codec.encode(x, x.dtype)).astype(x.dtype)
    if quantize[name]
    else x
    for name, x in streams.items()
  }


def attend_plainly(
  variant,
  params,
  h,
  table,
  streams,
  positions,
  key_positions,
  relative,
  absorb=False,
):
  """Returns a layer's attention `[B, T, D]` and weights `[B, N, T, S]`."""
  with jax.named_scope('attend'):
    out, weights = plain_attention(
      variant.project_queries(params, h, table, absorb),
      variant.expand(params, streams, absorb),
      positions,
      key_positions,
      variant.scoring(params, relative, absorb),
    )
  y = variant.project_output(params, out.astype(h.dtype), absorb)
  heads = weights.shape[1] * weights.shape[2]
  return y, weights.reshape(weights.shape[:1] + (heads,) + weights.shape[3:])


def cross_plainly(
  layer: Layer, params: Mapping[str, Any], encoded: Encoded, h: jax.Array
) -> jax.Array:
  """Returns attention `[B, T, D]` to the encoder's output."""
  variant = layer.cross
  if variant is None:
    raise ValueError('The layer has no cross attention.')
  streams = variant.project_streams(params['cross'], encoded.hidden, None)
  positions = jnp.zeros(h.shape[:2], jnp.int32)
  return attend_plainly(
    variant,
    params['cross'],
    h,
    None,
    streams,
    positions,
    encoded.positions,
    None,
  )[0]


def with_visibility(config: ModelConfig, visibility: Any) -> ModelConfig:
  """Returns the config with every layer narrowed to a window (and sinks).

  What `forward` of it computes is what a ring or sinks cache lets a model see.
  """
  layers = tuple(
    dataclasses.replace(
      layer,
      attention=dataclasses.replace(
        layer.attention, visibility=visibility(layer.attention.visibility)
      ),
    )
    for layer in config.layers
  )
  return dataclasses.replace(config, layers=layers)
