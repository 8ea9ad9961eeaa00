"""Qwen3 (arXiv 2505.09388): queries and keys normalised head by head."""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.families.qwen2 import windows
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import HEAD_NORMS, LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen3 config.json."""
  mlp = MLP(
    settings.need('intermediate_size'), settings.activation('hidden_act')
  )
  layers = [
    Layer(_attention(settings, window), mlp) for window in windows(settings)
  ]
  norm = Norm(settings.get('rms_norm_eps', 1e-6))
  return settings.model(layers, tied=False, norm=norm)


def _attention(settings: Settings, window: int | None) -> Grouped:
  width = settings.get('head_dim', 128)
  return attention(settings, window, width, settings.kv_heads(32))


def attention(
  settings: Settings, window: int | None, width: int, kv_heads: int
) -> Grouped:
  """Returns the attention of a layer with heads of `width`."""
  bias = settings.get('attention_bias', False)
  return Grouped(
    settings.need('num_attention_heads'),
    kv_heads,
    width,
    rotary=rotary(settings, width),
    visibility=Visibility(window=window),
    projection_bias=bias,
    output_bias=bias,
    qk_norm=Norm(settings.get('rms_norm_eps', 1e-6)),
  )


FAMILY = Family(config, LLAMA + HEAD_NORMS)
