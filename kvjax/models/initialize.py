"""Parameters of a model: random ones, and whether given ones are its."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_array, check_type, random_keys
from kvjax.layers.int8_weight import CodedWeight
from kvjax.layers.norm import Norm
from kvjax.models.config import (
  Layer,
  ModelConfig,
  check_config,
  relative_bias,
)
from kvjax.tree_paths import leaves_by_path


def init_params(config: ModelConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random parameters: normal, fan-in scaled; a pytree of dicts.

  Args:
    config: the model.
    key: a JAX random key.

  Returns:
    `embedding [V, D]`, `layers` (a list), `norm`, and where the config asks
    for them `head [V, D]`, `positions`, `relative`, `encoder`.
  """
  check_config(config)
  key = random_keys('key', key, ())
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


def check_params(config: ModelConfig, params: Mapping[str, Any]) -> None:
  """Raises ValueError unless params have the shapes that the config asks for.

  A shape is known while a program is traced, so a compiled program checks
  nothing. Any floating dtype will do; weights of eight bits have their own.
  """
  check_type(
    'params',
    params,
    Mapping,
    'give the dict that init_params or load_checkpoint returned. Arguments '
    'come in the order config, params.',
  )
  leaves = _leaves(params)
  wanted, given = _shapes(_leaves(param_shapes(config))), _shapes(leaves)
  for place in sorted(wanted.keys() | given.keys()):
    if wanted.get(place) == given.get(place):
      continue
    if place not in given:
      problem = f'are without {place}; the config asks for it'
    elif place not in wanted:
      problem = f'have {place}, for which the config has no place'
    else:
      problem = (
        f'have {place} {list(given[place])}; the config makes it '
        f'{list(wanted[place])}'
      )
    raise ValueError(f'params {problem}. Give the params of this config.')
  for place, leaf in leaves.items():
    if not isinstance(leaf, CodedWeight):
      check_array(f'params {place}', leaf, wanted[place], jnp.floating)


@functools.lru_cache
def param_shapes(config: ModelConfig) -> dict[str, Any]:
  """Returns shape and dtype of each of `init_params(config)`; allocates none.

  Tracing a hundred layers takes half a second, so the result is kept; treat it
  as immutable.
  """
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _leaves(params: Any) -> dict[str, Any]:
  return leaves_by_path(params, lambda leaf: isinstance(leaf, CodedWeight))


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  return {p: tuple(getattr(leaf, 'shape', ())) for p, leaf in leaves.items()}
