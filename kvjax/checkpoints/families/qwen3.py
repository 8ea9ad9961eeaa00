"""Qwen3 (arXiv 2505.09388): queries and keys normalised head by head."""

from kvjax.checkpoints.families.qwen2 import windows
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import HEAD_NORMS, LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen3 config.json."""
  norm = settings.rms_norm(1e-6)
  layers = [
    Layer(
      grouped(
        settings,
        width=settings.get('head_dim', 128),
        kv_heads=32,
        bias=settings.get('attention_bias', False),
        window=window,
        qk_norm=norm,
      ),
      settings.mlp(),
    )
    for window in windows(settings)
  ]
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(config, LLAMA + HEAD_NORMS)
