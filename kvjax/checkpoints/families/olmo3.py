"""OLMo 3 (arXiv 2512.13961): OLMo 2 with windows in three of four layers.

Only the global layers scale the rotation. Where config.json has `rope_theta`
and `rope_scaling`, these are of the global layers too, and the base of the
window layers is the published default.
"""

from kvjax.attention.rotary import Rotary
from kvjax.checkpoints.families.olmo2 import JOINT_NORMS
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.rope import has_nested_rope, rotary
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED, POST_NORMS
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

BASE = 5e5  # published default of the rotation


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an OLMo 3 config.json."""
  norm = settings.rms_norm(1e-5)
  layers = [
    Layer(
      grouped(
        settings,
        bias=settings.get('attention_bias', False),
        window=window,
        rotary=_rotary(settings, window),
        qk_norm=norm,
        qk_norm_joint=True,
      ),
      settings.mlp(),
      norms='post',
    )
    for window in settings.windows([SLIDING] * 3 + [FULL], 4096)
  ]
  return settings.model(layers, tied=False, norm=norm)


def _rotary(settings: Settings, window: int | None) -> Rotary:
  width = settings.head_width()
  nested = has_nested_rope(settings)
  if window and not nested:
    return Rotary(width, base=BASE)
  kind = SLIDING if window else FULL
  return rotary(settings, width, base=BASE, layer_type=kind)


FAMILY = Family(config, ENDS + POST_NORMS + GROUPED + GATED + JOINT_NORMS)
