"""kvjax's own layout of a checkpoint: any config, and params by their paths.

`config.json` has `model_type: kvjax` and the `ModelConfig`, class by class,
under `config`. A tensor's name is the path of its param, and its shape that of
the param, so every model that `ModelConfig` can say has such a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from kvjax import frozen_json
from kvjax.attention.bias import Alibi, RelativeBias
from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.attention.rotary import (
  Dynamic,
  Linear,
  Llama3,
  LongRope,
  Rotary,
  Yarn,
)
from kvjax.checkpoints.dequantize import PublishedTensor
from kvjax.checkpoints.match import ParamSource, check_plain
from kvjax.checkpoints.table import TableRow
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.initialize import param_shapes
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility
from kvjax.tree_paths import leaves_by_path

OWN = 'kvjax'  # model_type
KEY = 'config'
TYPES = (
  (ModelConfig, Layer, Encoder, Norm, MLP, Experts, Visibility)
  + (Grouped, Latent, Alibi, RelativeBias)
  + (Rotary, Linear, Dynamic, Llama3, Yarn, LongRope)
)


def own_values(config: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of a model in kvjax's own layout.

  Raises:
    ValueError: a part of the config is of a class from outside kvjax, or is no
      plain value.
  """
  values = {'model_type': OWN, KEY: frozen_json.encode(config)}
  parse_own(values)
  return values


def parse_own(values: Mapping[str, Any]) -> ModelConfig:
  """Returns the config that `own_values` wrote.

  Raises:
    ValueError: it describes no model of kvjax's own classes.
  """
  try:
    config = frozen_json.decode(
      values.get(KEY), {cls.__name__: cls for cls in TYPES}
    )
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(
      f'The config of model_type={OWN!r} cannot be read: {error} Only '
      'classes of kvjax can be.'
    ) from None
  if not isinstance(config, ModelConfig):
    raise ValueError(
      f'{KEY!r} of config.json must hold a ModelConfig, as save_checkpoint '
      f'writes it, and holds a {type(config).__name__}.'
    )
  return config


def match_own(
  config: ModelConfig, tensors: Mapping[str, PublishedTensor]
) -> list[ParamSource]:
  """Returns the source of every param of the model, all of them checked.

  Raises:
    ValueError: a tensor is missing, unexpected, of another shape than the
      config gives it, or no plain weight; the message names it.
  """
  if len(config.layers) > len(tensors):
    raise ValueError(
      f'config.json has {len(config.layers)} layers, and the checkpoint '
      f'{len(tensors)} tensors.'
    )
  spec = leaves_by_path(param_shapes(config))
  for place in sorted(spec.keys() ^ tensors.keys()):
    state = 'is missing' if place in spec else 'has no place in config.json'
    raise ValueError(f'Tensor {place} of the checkpoint {state}.')
  sources = []
  for place, param in spec.items():
    tensor = tensors[place]
    check_plain(tensor)
    if tensor.shape != param.shape:
      raise ValueError(
        f'Tensor {place} has shape {list(tensor.shape)}; config.json '
        f'makes it {list(param.shape)}.'
      )
    row = TableRow(place, (), place)
    sources.append(
      ParamSource(place, param.shape, param.dtype, row, {}, (tensor,))
    )
  return sources
