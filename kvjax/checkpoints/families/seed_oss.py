"""Seed-OSS (2025): Llama with biases of q, k and v, and of the output apart."""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Seed-OSS config.json."""
  attention = grouped(
    settings,
    width=settings.head_width(128),
    kv_heads=8,
    projection_bias=settings.get('attention_bias', True),
    output_bias=settings.get('attention_out_bias', False),
  )
  mlp = settings.mlp(bias=settings.get('mlp_bias', False))
  layers = [Layer(attention, mlp)] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


FAMILY = Family(config, LLAMA)
