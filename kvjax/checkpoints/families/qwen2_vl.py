"""Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191, 2502.13923), text: Qwen2.

The older config.json has the keys of the text part next to those of the whole
model, the newer one has them in `text_config`.
"""

from collections.abc import Mapping
from typing import Any

from kvjax.checkpoints.families import qwen2
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.text_part import (
  plain_rope,
  refuse_images,
  text_family,
  text_settings,
)
from kvjax.models.config import ModelConfig

IMAGES = {'image_token_id': 151655, 'video_token_id': 151656}
DEFAULTS = {
  'max_window_layers': 80,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-5,
}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of the decoder of a Qwen2-VL or Qwen2.5-VL."""
  text = qwen_text(settings, 1e6, DEFAULTS)
  # Published code divides, whatever head_dim says.
  heads = text.need('num_attention_heads')
  text.only('head_dim', text.need('hidden_size') // heads)
  return refuse_images(qwen2.config(text), settings, IMAGES)


def qwen_text(
  settings: Settings, base: float, defaults: Mapping[str, Any]
) -> Settings:
  """Returns the settings of the text part.

  Args:
    settings: of the whole model, which is tied where one of both says so.
    base: published default of `rope_theta`.
    defaults: published defaults in which the text part differs.
  """
  nested = settings.raw('text_config') is not None
  text = plain_rope(text_settings(settings) if nested else settings, base)
  key = 'tie_word_embeddings'
  tied = settings.get(key, False) or text.get(key, False)
  return Settings({**defaults, **text.values, key: tied})


FAMILY = text_family(config, qwen2.FAMILY.rows, 'qwen2', outer='')
FAMILIES = {'qwen2_vl': FAMILY, 'qwen2_5_vl': FAMILY}
