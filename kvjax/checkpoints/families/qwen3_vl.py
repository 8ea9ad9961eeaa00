"""Qwen3-VL (arXiv 2511.21631), text: Qwen3."""

from kvjax.checkpoints.families import qwen3
from kvjax.checkpoints.families.qwen2_vl import IMAGES, qwen_text
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.text_part import refuse_images, text_family
from kvjax.models.config import ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of the decoder of a Qwen3-VL."""
  settings.need('text_config')
  text = qwen_text(settings, 5e5, {})
  text.refuse('use_sliding_window')
  return refuse_images(qwen3.config(text), settings, IMAGES)


FAMILY = text_family(config, qwen3.FAMILY.rows, 'qwen3')
