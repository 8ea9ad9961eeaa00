"""One decoder layer and the two ends of a decoder; no state, no cache."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kvjax.layers.linear import matmul
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig, relative_bias

Half = Callable[[jax.Array], jax.Array]
Attention = Callable[[jax.Array], tuple[jax.Array, Any]]


def embed(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  positions: jax.Array,
) -> jax.Array:
  """Returns activations `[B, T, D]` of token ids `[B, T]` at positions."""
  with jax.named_scope('embedding'):
    x = params['embedding'][jnp.clip(tokens, 0, config.vocab_size - 1)]
    if config.embedding_scale != 1.0:
      x = x * jnp.asarray(config.embedding_scale, x.dtype)
    if config.positions:
      x = x + params['positions'][jnp.maximum(positions, 0)]
    return checkpoint_name(x, 'x')


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
    return x + (y if residual_scale == 1.0 else y * residual_scale)

  def mlp(h):
    return layer.mlp(params['mlp'], h)

  if layer.parallel:
    h = norm(params['attention_norm'], x)
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
    x = norm(params[f'{name}_norm'], x)
  y, extra = half(x)
  if layer.norms != 'pre':
    y = norm(params[f'{name}_post_norm'], y)
  return y, extra


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters: normal, fan-in scaled; a pytree of dicts.

  Args:
    config: the model.
    key: a JAX random key.

  Returns:
    `embedding [V, D]`, `layers` (a list), `norm`, and where the config asks
    for them `head [V, D]`, `positions`, `relative`, `encoder`.
  """
  dtype = jnp.dtype(config.dtype)
  keys = jax.random.split(key, 6)
  width, vocab = config.width, config.vocab_size
  params: dict[str, Any] = {
    'embedding': _normal(keys[0], (vocab, width), 1.0, dtype),
    'layers': init_layers(config.layers, config.norm, keys[1], width, dtype),
    'norm': config.norm.init(width, dtype),
  }
  if not config.tied:
    params['head'] = _normal(keys[2], (vocab, width), width**-0.5, dtype)
  if config.head_bias:
    params['head_bias'] = jnp.zeros((vocab,), dtype)
  if config.positions:
    shape = (config.positions, width)
    params['positions'] = _normal(keys[3], shape, 1.0, dtype)
  if (shape := relative_bias(config.layers)) is not None:
    params['relative'] = _normal(keys[4], shape, 1.0, dtype)
  if config.encoder is not None:
    params['encoder'] = _init_encoder(config.encoder, keys[5], width, dtype)
  return params


def _init_encoder(encoder, key, width, dtype):
  keys = jax.random.split(key, 5)
  params = {
    'layers': init_layers(encoder.layers, encoder.norm, keys[0], width, dtype),
    'norm': encoder.norm.init(width, dtype),
  }
  if (shape := relative_bias(encoder.layers)) is not None:
    params['relative'] = _normal(keys[1], shape, 1.0, dtype)
  if encoder.positions:
    shape = (encoder.positions, width)
    params['positions'] = _normal(keys[2], shape, 1.0, dtype)
  if encoder.features is not None:
    for name, k, fan_in in zip(
      ('conv_0', 'conv_1'), keys[3:], (encoder.features, width), strict=True
    ):
      scale = (3 * fan_in) ** -0.5
      params[name] = _normal(k, (3, fan_in, width), scale, dtype)
      params[f'{name}_bias'] = jnp.zeros((width,), dtype)
  return params


def init_layers(
  layers: tuple[Layer, ...],
  norm: Norm,
  key: jax.Array,
  width: int,
  dtype: Any,
) -> list[dict[str, Any]]:
  """Returns random parameters of a stack of layers."""
  return [
    _init_layer(layer, norm, k, width, dtype)
    for layer, k in zip(layers, jax.random.split(key, len(layers)), strict=True)
  ]


def _init_layer(layer, norm, key, width, dtype):
  keys = jax.random.split(key, 3)
  halves = {'attention': layer.attention, 'mlp': layer.mlp}
  if layer.cross is not None:
    halves['cross'] = layer.cross
  params = {
    name: half.init(k, width, dtype)
    for k, (name, half) in zip(keys, halves.items(), strict=False)
  }
  normed = ['attention'] if layer.parallel == 'shared' else list(halves)
  for name in normed:
    if layer.norms != 'post':
      params[f'{name}_norm'] = norm.init(width, dtype)
    if layer.norms != 'pre':
      params[f'{name}_post_norm'] = norm.init(width, dtype)
  return params


def _normal(key, shape, scale, dtype):
  return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)
