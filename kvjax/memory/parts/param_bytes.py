"""Bytes of parameters: counted from the config, or cut up as a mesh does."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.memory.parts.lines import Line
from kvjax.memory.parts.sharding import WHOLE, Shards, shards
from kvjax.models.config import Layer, ModelConfig, relative_bias
from kvjax.models.initialize import init_layers, param_shapes
from kvjax.models.quantize import quantize

TABLES = 'embedding, head, positions'


def param_lines(
  config: ModelConfig,
  size: int,
  cut: Shards = WHOLE,
  coded: Mapping[str, Any] | None = None,
) -> Iterator[Line]:
  """Yields what the parameters of `size` bytes an element occupy.

  On one device the counts are formulas; on a mesh each leaf of a layer is cut
  as `Shards` says, its shape taken from an abstract `init_params`. What is
  `coded` (`coded_parts`) has other lines and is not counted here.
  """
  coded = coded or {}
  codes = {name: part.codes for name, part in coded.items()}
  yield _ends(config, size, cut, bool(coded))
  counts = _layer_counts(config.layers, config)
  if cut.sizes:
    counts = {
      'layers': sum(
        _layer_elements(layer, config, cut) for layer in config.layers
      ),
      'norm': config.norm.num_params(config.width),
    }
  for name, count in counts.items():
    if rest := count - codes.get(name, 0):
      yield _elements(name, rest, size)
  wide = sum(_corrections(layer.mlp) for layer in config.layers)
  if wide and size < 4:
    yield Line(
      'params',
      'corrections of routing, beyond that',
      wide * (4 - size),
      'they are float32',
      f'{wide} x (4 - {size})',
    )
  if config.encoder is not None:
    count = _encoder_count(config) - codes.get('encoder', 0)
    yield _elements('encoder', count, size)


def active_elements(config: ModelConfig) -> int:
  """Returns elements that a step reads: of an untied embedding, one row."""
  width, vocab = config.width, config.vocab_size
  layers = sum(
    layer.attention.num_params(width) + layer.mlp.num_active(width)
    for layer in config.layers
  )
  cross = sum(
    layer.cross.num_params(width)
    for layer in config.layers
    if layer.cross is not None
  )
  return vocab * width + layers + cross


def _corrections(mlp: Any) -> int:
  return mlp.num_experts if getattr(mlp, 'correction', False) else 0


def _ends(config: ModelConfig, size: int, cut: Shards, coded: bool) -> Line:
  width, vocab = config.width, config.vocab_size
  vocab //= cut.parts('vocab', vocab)
  tables = (1 if config.tied else 2) - coded
  extra = vocab if config.head_bias else 0
  extra += config.positions * width
  relative = relative_bias(config.layers)
  extra += relative[0] * relative[1] if relative else 0
  return Line(
    'params',
    TABLES,
    (tables * vocab * width + extra) * size,
    '(tables V D + more) bytes',
    f'({tables} x {vocab} x {width} + {extra}) x {size}',
  )


def _elements(name: str, count: int, size: int) -> Line:
  return Line(
    'params', name, count * size, 'elements bytes', f'{count} x {size}'
  )


def _layer_counts(
  layers: tuple[Layer, ...], config: ModelConfig
) -> dict[str, int]:
  width = config.width
  attention = sum(layer.attention.num_params(width) for layer in layers)
  cross = sum(
    layer.cross.num_params(width) for layer in layers if layer.cross is not None
  )
  norms = sum(_norms(layer) for layer in layers) + 1
  dense = [x for x in layers if not hasattr(x.mlp, 'num_experts')]
  sparse = [x for x in layers if hasattr(x.mlp, 'num_experts')]
  found = {'attention': attention + cross}
  if dense:
    found['mlp'] = sum(layer.mlp.num_params(width) for layer in dense)
  if sparse:
    found['experts'] = sum(layer.mlp.num_params(width) for layer in sparse)
  return found | {'norms': norms * config.norm.num_params(width)}


def _norms(layer: Layer) -> int:
  halves = 2 if layer.cross is None else 3
  if layer.parallel:
    halves = 1 if layer.parallel == 'shared' else 2
  return halves * (2 if layer.norms == 'both' else 1)


def _encoder_count(config: ModelConfig) -> int:
  encoder = config.encoder
  if encoder is None:
    return 0
  width = config.width
  inner = dataclasses.replace(
    config, layers=encoder.layers, norm=encoder.norm, encoder=None
  )
  count = sum(_layer_counts(encoder.layers, inner).values())
  count += encoder.positions * width
  relative = relative_bias(encoder.layers)
  count += relative[0] * relative[1] if relative else 0
  if encoder.features is not None:
    count += 3 * width * (encoder.features + width) + 2 * width
  return count


def param_specs(config: ModelConfig, mesh: Any, param_dtype: Any = None) -> Any:
  """Returns a `PartitionSpec` for every leaf of `init_params(config)`.

  The layout that `plan(mesh=)` counts. Every device has the whole encoder.

  Args:
    config: the model.
    mesh: as in `plan`.
    param_dtype: 'int8' for every leaf of `quantize` of them: a scale is
      split as its output channel is.

  Raises:
    ValueError: an axis is split in fewer parts than the mesh has devices.
  """
  cut = shards(mesh)
  params = param_shapes(config)
  if param_dtype == 'int8':
    params = jax.eval_shape(quantize, params)

  def spec(path, leaf):
    keys: list[Any] = [getattr(k, 'key', getattr(k, 'idx', None)) for k in path]
    keys = [key for key in keys if key is not None]  # codes and scale
    if keys[0] == 'layers':
      return _spec(axes_of(keys[2:], config.layers[keys[1]]), leaf, cut)
    return _spec(_end_axes(keys[0], config), leaf, cut)

  return jax.tree_util.tree_map_with_path(spec, params)


@functools.lru_cache(maxsize=256)
def _layer_elements(layer: Layer, config: ModelConfig, cut: Shards) -> int:
  """Returns elements of a layer's parameters on one device."""
  init = functools.partial(
    init_layers, (layer,), config.norm, width=config.width, dtype=jnp.float32
  )
  (leaves,) = jax.eval_shape(init, jax.random.key(0))
  count = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
    axes = axes_of([key.key for key in path], layer)
    parts = [cut.parts(name, units) for name, units in axes if name]
    count += math.prod(leaf.shape) // math.prod(parts)
  return count


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


def _spec(
  axes: list[tuple[str, int]], leaf: Any, cut: Shards
) -> jax.sharding.PartitionSpec:
  axes = axes[: len(leaf.shape)]
  names = [cut.axis(name, units) if name else None for name, units in axes]
  names += [None] * (len(leaf.shape) - len(names))
  return jax.sharding.PartitionSpec(*names)
