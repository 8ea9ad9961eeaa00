"""SmolLM3 (2025): Llama whose every fourth layer has no rotary positions.

`no_rope_layers` has 1 for a layer with rotary positions, and 0 for a layer
without.
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
  """Returns the config of a SmolLM3 config.json."""
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act'),
    bias=settings.get('mlp_bias', False),
  )
  rotated = _rotated(settings)
  layers = [
    Layer(_attention(settings, window, is_rotated), mlp)
    for window, is_rotated in zip(
      _windows(settings, rotated), rotated, strict=True
    )
  ]
  norm = Norm(settings.get('rms_norm_eps', 1e-6))
  return settings.model(layers, tied=True, norm=norm)


def _rotated(settings: Settings) -> list[bool]:
  count = settings.need('num_hidden_layers')
  every = settings.get('no_rope_layer_interval', 4)
  default = [(i + 1) % every != 0 for i in range(count)]
  flags = settings.get('no_rope_layers', default)
  if len(flags) != count:
    raise ValueError(
      f'no_rope_layers names {len(flags)} layers; num_hidden_layers={count}.'
    )
  return [bool(flag) for flag in flags]


def _windows(settings: Settings, rotated: list[bool]) -> list[int | None]:
  window = settings.raw('sliding_window')
  if window is None or not settings.get('use_sliding_window', False):
    return [None] * len(rotated)
  default = [
    'full_attention' if is_rotated else 'sliding_attention'
    for is_rotated in rotated
  ]
  return settings.windows(default, window)


def _attention(
  settings: Settings, window: int | None, is_rotated: bool
) -> Grouped:
  width = settings.head_width()
  bias = settings.get('attention_bias', False)
  return Grouped(
    settings.need('num_attention_heads'),
    settings.kv_heads(4),
    width,
    rotary=rotary(settings, width, base=2e6) if is_rotated else None,
    visibility=Visibility(window=window),
    projection_bias=bias,
    output_bias=bias,
  )


FAMILY = Family(config, LLAMA)
