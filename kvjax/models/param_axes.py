"""Named axes of parameters, by which rules split them over a mesh."""

import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from kvjax.mesh.rules import Partition
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.initialize import param_shapes
from kvjax.models.quantize import WEIGHTS, quantize


def param_specs(
  config: ModelConfig, partition: Partition, param_dtype: Any = None
) -> Any:
  """Returns a `PartitionSpec` for every leaf of `init_params(config)`.

  Every device has the whole encoder, and all norms.

  Args:
    config: the model.
    partition: a mesh and its rules.
    param_dtype: 'int8' or 'int4' for every leaf of `quantize`: a scale is
      split as its output channel is.
  """
  params = param_shapes(config)
  if param_dtype in WEIGHTS:
    coded = functools.partial(quantize, bits=WEIGHTS[param_dtype])
    params = jax.eval_shape(coded, params)

  def spec(path, leaf):
    keys: list[Any] = [getattr(k, 'key', getattr(k, 'idx', None)) for k in path]
    keys = [key for key in keys if key is not None]  # codes and scale
    if keys[0] == 'layers':
      axes = axes_of(keys[2:], config.layers[keys[1]])
    else:
      axes = _end_axes(keys[0], config)
    axes = [*axes, *[_WHOLE] * len(leaf.shape)][: len(leaf.shape)]
    return partition.spec(*zip(*axes, strict=True)) if axes else P()

  return jax.tree_util.tree_map_with_path(spec, params)


# Projections out of the model's width are split by what they make, those back
# into it by what they read, so that a half needs one sum over devices.
_BY_HEADS = ('query', 'query_bias', 'sinks', 'up_key', 'up_value')
_BY_KV_HEADS = ('key', 'key_bias', 'value', 'value_bias')
_BY_HIDDEN = ('gate', 'gate_bias', 'up', 'up_bias')
_WHOLE = ('', 0)


def axes_of(path: list[Any], layer: Layer) -> list[tuple[str, int]]:
  """Returns name and number of units of a leaf's leading axes, '' for whole."""
  half, name = path[0], path[-1]
  if half in ('attention', 'cross'):
    variant: Any = layer.attention if half == 'attention' else layer.cross
    if name in _BY_HEADS:
      return [('heads', variant.num_heads)]
    if name in _BY_KV_HEADS:
      return [('kv_heads', getattr(variant, 'num_kv_heads', 1))]
    if name == 'output':
      return [_WHOLE, ('heads', variant.num_heads)]
  if half != 'mlp':
    return []
  mlp: Any = layer.mlp
  shared = 'shared' in path
  units: int = (mlp.shared if shared else mlp).hidden
  hidden = 'hidden', units
  inner: dict[str, list[tuple[str, int]]] = {'down': [_WHOLE, hidden]}
  inner.update((key, [hidden]) for key in _BY_HIDDEN)
  if shared or not hasattr(mlp, 'num_experts'):
    return inner.get(name, [])
  inner['down_bias'] = []
  experts = 'experts', mlp.num_experts
  return [experts, *inner[name]] if name in inner else []


def _end_axes(name: str, config: ModelConfig) -> list[tuple[str, int]]:
  ends = 'embedding', 'head', 'head_bias'
  return [('vocab', config.vocab_size)] if name in ends else []
