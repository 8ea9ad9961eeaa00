"""EXAONE 4 (arXiv 2507.11407): norms after each half, and on every head.

With windows in some layers, the layers without one have no rotary positions.
"""

from kvjax.arguments import is_whole
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, MAX_LAYERS, SLIDING, Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import (
  ENDS,
  GATED,
  GROUPED,
  HEAD_NORMS,
  POST_NORMS,
)
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

WINDOW = 4096  # published default
PATTERN = 'sliding_window_pattern'


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an EXAONE 4 config.json."""
  norm = settings.rms_norm(1e-5)
  rotation = rotary(settings, settings.head_width())
  is_hybrid = settings.raw('sliding_window', WINDOW) is not None
  layers = [
    Layer(
      grouped(
        settings,
        kv_heads=32,
        window=window,
        rotary=None if is_hybrid and window is None else rotation,
        qk_norm=norm,
      ),
      settings.mlp(),
      norms='post',
    )
    for window in settings.windows(_layer_types(settings, is_hybrid), WINDOW)
  ]
  return settings.model(layers, tied=False, norm=norm)


def _layer_types(settings: Settings, is_hybrid: bool) -> list[str]:
  """Returns the `layer_types` of a config.json that has none.

  The pattern is a number (every n-th layer is global) or a text that has L for
  a layer with a window and G for a global one. A text leaves the last layer
  global, whatever its letter.
  """
  if not is_hybrid or settings.raw('layer_types') is not None:
    return [FULL]
  pattern = settings.values.get(PATTERN, 4)
  if is_whole(pattern, 1, MAX_LAYERS):
    return [SLIDING] * (pattern - 1) + [FULL]
  if not isinstance(pattern, str) or not pattern or set(pattern) - set('LG'):
    raise ValueError(
      f'{PATTERN}={pattern!r} of model_type={settings.family!r} must be a '
      f'whole number from 1 to {MAX_LAYERS}, or a text of L and G.'
    )
  last = settings.need('num_hidden_layers') - 1
  kinds = {'L': SLIDING, 'G': FULL}
  return [kinds[pattern[i % len(pattern)]] for i in range(last)] + [FULL]


ROWS = ENDS + POST_NORMS + GROUPED + HEAD_NORMS + GATED
FAMILY = Family(config, ROWS)
