"""Llama 1, 2, 3, 3.1, 3.2 (arXiv 2302.13971, 2407.21783) and SmolLM2.

GQA with rotary positions, RMSNorm and a gated MLP; llama3, linear, dynamic and
yarn scaling; biases and tied heads where config.json says so.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Llama config.json."""
  layer = Layer(
    grouped(settings, bias=settings.get('attention_bias', False)),
    settings.mlp(bias=settings.get('mlp_bias', False)),
  )
  layers = [layer] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


FAMILY = Family(config, LLAMA)
