"""SmolLM3 (2025): Llama whose every fourth layer has no rotary positions.

`no_rope_layers` has 1 for a layer with rotary positions, and 0 for a layer
without.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a SmolLM3 config.json."""
  every = settings.get('no_rope_layer_interval', 4)
  rotated = settings.per_layer('no_rope_layers', [1] * (every - 1) + [0])
  windows = _windows(settings, rotated)
  rotation = rotary(settings, settings.head_width(), base=2e6)
  layers = [
    Layer(
      grouped(
        settings,
        kv_heads=4,
        bias=settings.get('attention_bias', False),
        window=window,
        rotary=rotation if is_rotated else None,
      ),
      settings.mlp(bias=settings.get('mlp_bias', False)),
    )
    for window, is_rotated in zip(windows, rotated, strict=True)
  ]
  return settings.model(layers, tied=True, norm=settings.rms_norm(1e-6))


def _windows(settings: Settings, rotated: list[int]) -> list[int | None]:
  has_windows = settings.get('use_sliding_window', False)
  window = settings.raw('sliding_window') if has_windows else None
  if window is None:
    return [None] * len(rotated)
  default = [FULL if is_rotated else SLIDING for is_rotated in rotated]
  return settings.windows(default, window)


FAMILY = Family(config, LLAMA)
