"""Ministral 3 (arXiv 2601.08584): Mistral whose queries have a temperature.

Queries grow with their position (`llama_4_scaling_beta`), in steps of the
length of pretraining. Its other numbers are in the rope parameters.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import (
  original_length,
  replace_rope,
  rope_parameters,
)
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.streams.scoring import Temperature

BETA = 'llama_4_scaling_beta'
# The published rope parameters, where config.json has none.
ROPE = {
  'rope_type': 'yarn',
  'rope_theta': 1e6,
  'factor': 16.0,
  'original_max_position_embeddings': 16384,
  'mscale': 1.0,
  'mscale_all_dim': 1.0,
  BETA: 0.1,
}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Ministral 3 config.json."""
  settings.refuse('layer_types')
  rope = dict(rope_parameters(settings) or ROPE)
  rope.pop('max_position_embeddings', None)  # no published code reads it here
  weight = Settings({'model_type': settings.family} | rope).need(BETA)
  del rope[BETA]
  settings = replace_rope(settings, rope)
  attention = grouped(
    settings,
    width=settings.get('head_dim', 128),
    kv_heads=8,
    window=settings.raw('sliding_window'),
    temperature=Temperature(weight, original_length(settings, rope)),
  )
  layers = [Layer(attention, settings.mlp())]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=False,
    norm=settings.rms_norm(1e-5),
  )


FAMILY = Family(config, LLAMA)
