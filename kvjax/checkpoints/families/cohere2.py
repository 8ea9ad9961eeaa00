"""Cohere 2, Command R7B and Command A (arXiv 2504.00698): parallel, windows.

Three of four layers have a window and rotary positions. The fourth layer sees
all earlier tokens and has no positions.
"""

from kvjax.checkpoints.families.cohere import LAYER_NORMS
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Cohere 2 config.json."""
  settings.refuse('use_qk_norm')
  rotation = rotary(settings, settings.head_width(), interleaved=True)
  every = settings.get('sliding_window_pattern', 4)
  layers = [
    Layer(
      grouped(
        settings,
        bias=settings.get('attention_bias', False),
        window=window,
        rotary=rotation if window else None,
      ),
      settings.mlp(),
      parallel='shared',
    )
    for window in settings.windows([SLIDING] * (every - 1) + [FULL], 4096)
  ]
  return settings.model(
    layers,
    tied=True,
    norm=Norm(settings.get('layer_norm_eps', 1e-5), centered=True),
    logit_scale=settings.get('logit_scale', 0.0625),
  )


FAMILY = Family(config, ENDS + GROUPED + GATED + LAYER_NORMS)
