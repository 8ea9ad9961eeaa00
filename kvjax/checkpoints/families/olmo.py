"""OLMo (arXiv 2402.00838): LayerNorm without weight or bias, no biases.

`clip_qkv` bounds queries, keys and values. No norm has a tensor, and their
epsilon is in no config.json: it is 1e-5.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an OLMo config.json."""
  attention = grouped(
    settings,
    bias=settings.get('attention_bias', False),
    clip=settings.raw('clip_qkv'),
  )
  layer = Layer(attention, settings.mlp())
  layers = [layer] * settings.need('num_hidden_layers')
  norm = Norm(1e-5, centered=True, weighted=False)
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(config, ENDS + GROUPED + GATED)
