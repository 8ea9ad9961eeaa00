"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on q, k and v.

With `use_sliding_window`, layers from `max_window_layers` on have a window.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen2 config.json."""
  width = settings.head_width()
  mlp = MLP(
    settings.need('intermediate_size'), settings.activation('hidden_act')
  )
  layers = [
    Layer(
      Grouped(
        settings.need('num_attention_heads'),
        settings.kv_heads(32),
        width,
        rotary=rotary(settings, width),
        visibility=Visibility(window=window),
        projection_bias=True,
      ),
      mlp,
    )
    for window in windows(settings)
  ]
  norm = Norm(settings.get('rms_norm_eps', 1e-6))
  return settings.model(layers, tied=False, norm=norm)


def windows(settings: Settings) -> list[int | None]:
  """Returns each layer's window by Qwen's rule."""
  count = settings.need('num_hidden_layers')
  window = settings.raw('sliding_window', 4096)
  if window is None or not settings.get('use_sliding_window', False):
    settings.only('layer_types', ['full_attention'] * count)
    return [None] * count
  first = settings.get('max_window_layers', 28)
  default = [
    'sliding_attention' if i >= first else 'full_attention'
    for i in range(count)
  ]
  return settings.windows(default, window)


FAMILY = Family(config, LLAMA)
