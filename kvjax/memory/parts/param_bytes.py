"""Bytes of parameters: counted from the config, or cut up as a mesh does."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.memory.parts.lines import Line
from kvjax.mesh.rules import WHOLE, Partition
from kvjax.models.config import Layer, ModelConfig, relative_bias
from kvjax.models.initialize import init_layers
from kvjax.models.param_axes import axes_of

TABLES = 'embedding, head, positions'


def param_lines(
  config: ModelConfig,
  size: int,
  cut: Partition = WHOLE,
  coded: Mapping[str, Any] | None = None,
) -> Iterator[Line]:
  """Yields what the parameters of `size` bytes an element occupy.

  On one device the counts are formulas; on a mesh each leaf of a layer is cut
  as `Partition` says, its shape taken from an abstract `init_params`. What is
  `coded` (`coded_parts`) has other lines and is not counted here.
  """
  coded = coded or {}
  codes = {name: part.codes for name, part in coded.items()}
  yield _ends(config, size, cut, bool(coded))
  counts = _layer_counts(config.layers, config)
  if cut.devices > 1:
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


def _ends(config: ModelConfig, size: int, cut: Partition, coded: bool) -> Line:
  width, vocab = config.width, config.vocab_size
  (vocab,) = cut.local_shape(['vocab'], [vocab])
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


@functools.lru_cache(maxsize=256)
def _layer_elements(layer: Layer, config: ModelConfig, cut: Partition) -> int:
  """Returns elements of a layer's parameters on one device."""
  init = functools.partial(
    init_layers, (layer,), config.norm, width=config.width, dtype=jnp.float32
  )
  (leaves,) = jax.eval_shape(init, jax.random.key(0))
  count = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(leaves):
    axes = axes_of([key.key for key in path], layer)
    parts = cut.parts(*zip(*axes, strict=True)) if axes else []
    count += math.prod(leaf.shape) // math.prod(parts)
  return count
