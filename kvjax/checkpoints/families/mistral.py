"""Mistral (arXiv 2310.06825): Llama with a window in every layer.

`sliding_window: null` (since v0.2) means none; a config.json without the key
means the published default of 4096.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Mistral config.json."""
  settings.refuse('layer_types')
  window = settings.raw('sliding_window', 4096)
  layer = Layer(grouped(settings, kv_heads=8, window=window), settings.mlp())
  layers = [layer] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


FAMILY = Family(config, LLAMA)
