"""One decoder layer and the two ends of a decoder; no state, no cache."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kvjax.layers.linear import matmul
from kvjax.layers.norm import Norm
from kvjax.mesh.region import constrain_rows
from kvjax.models.config import Layer, ModelConfig

Half = Callable[[jax.Array], jax.Array]
Attention = Callable[[jax.Array], tuple[jax.Array, Any]]


def embed(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  positions: jax.Array,
) -> jax.Array:
  """Returns activations `[B, T, D]` of token ids `[B, T]` at positions."""
  # Rows of an id that is none, or outside the vocabulary, are NaN elsewhere.
  ids = jnp.clip(tokens.astype(jnp.int32), 0, config.vocab_size - 1)
  with jax.named_scope('embedding'):
    x = params['embedding'][ids]
    if config.embedding_scale != 1.0:
      x = x * jnp.asarray(config.embedding_scale, x.dtype)
    if config.positions:
      x = x + params['positions'][jnp.maximum(positions, 0)]
    return checkpoint_name(constrain_rows(x), 'x')


def unembed(
  config: ModelConfig, params: Mapping[str, Any], x: jax.Array
) -> jax.Array:
  """Returns float32 logits `[..., V]` of activations `[..., D]`."""
  with jax.named_scope('logits'):
    x = config.norm(params['norm'], x)
    rows = x.reshape(-1, x.shape[-1])
    head = params['embedding' if config.tied else 'head']
    logits = matmul(rows, head)
    if config.head_bias:
      logits = logits + params['head_bias'].astype(jnp.float32)[None, :]
    logits = logits * config.logit_scale
    if config.logit_softcap is not None:
      logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits.reshape(x.shape[:-1] + (config.vocab_size,))


def run_layer(
  layer: Layer,
  norm: Norm,
  params: Mapping[str, Any],
  x: jax.Array,
  attention: Attention,
  cross: Half | None = None,
  residual_scale: float = 1.0,
) -> tuple[jax.Array, Any]:
  """Returns a layer's output `[B, T, D]` and what its attention gave besides.

  `attention` maps normalised activations to its result and anything else;
  where keys and values come from is its affair.
  """

  def add(x, y):
    y = constrain_rows(y)
    return x + (y if residual_scale == 1.0 else y * residual_scale)

  def mlp(h):
    return layer.mlp(params['mlp'], h)

  if layer.parallel:
    h = constrain_rows(norm(params['attention_norm'], x))
    y, extra = attention(h)
    if layer.parallel == 'separate':
      h = norm(params['mlp_norm'], x)
    return add(x, y + mlp(h)), extra
  y, extra = _half(layer, norm, params, 'attention', x, attention)
  x = add(x, y)
  if cross is not None:
    y, _ = _half(layer, norm, params, 'cross', x, lambda h: (cross(h), None))
    x = add(x, y)
  y, _ = _half(layer, norm, params, 'mlp', x, lambda h: (mlp(h), None))
  return checkpoint_name(add(x, y), 'x'), extra


def _half(layer, norm, params, name, x, half):
  if layer.norms != 'post':
    x = constrain_rows(norm(params[f'{name}_norm'], x))
  y, extra = half(x)
  if layer.norms != 'pre':
    y = norm(params[f'{name}_post_norm'], y)
  return y, extra
