"""kvjax's own layout of a checkpoint: any config, and params by their paths.

`config.json` has `model_type: kvjax` and the `ModelConfig`, class by class,
under `config`. A tensor's name is the path of its param, and its shape that of
the param, so every model that `ModelConfig` can say has such a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from kvjax import frozen_json
from kvjax.attention import bias, grouped, latent, rotary
from kvjax.checkpoints.family import Family
from kvjax.layers.norm import Norm
from kvjax.models.config import Encoder, Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP
from kvjax.streams.scoring import Temperature
from kvjax.streams.visibility import Visibility

OWN = 'kvjax'  # model_type
KEY = 'config'
TYPES = (
  *(ModelConfig, Layer, Encoder, Norm, MLP, Experts, Visibility, Temperature),
  *(grouped.Grouped, latent.Latent, bias.Alibi, bias.RelativeBias),
  *(rotary.Rotary, rotary.Linear, rotary.Dynamic, rotary.Llama3),
  *(rotary.Yarn, rotary.LongRope, Temperature),
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


FAMILY = Family(
  lambda settings: parse_own(settings.values), rows=(), prefix='', copies={}
)
