"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on q, k and v.

With `use_sliding_window`, layers from `max_window_layers` on have a window.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Qwen2 config.json."""
  layers = [
    Layer(
      grouped(settings, kv_heads=32, window=window, projection_bias=True),
      settings.mlp(),
    )
    for window in windows(settings)
  ]
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-6))


def windows(settings: Settings) -> list[int | None]:
  """Returns each layer's window by Qwen's rule."""
  count = settings.need('num_hidden_layers')
  has_windows = settings.get('use_sliding_window', False)
  window = settings.raw('sliding_window', 4096) if has_windows else None
  if window is None:
    settings.only('layer_types', [FULL] * count)
    return [None] * count
  first = settings.get('max_window_layers', 28)
  default = [SLIDING if i >= first else FULL for i in range(count)]
  return settings.windows(default, window)


FAMILY = Family(config, LLAMA)
