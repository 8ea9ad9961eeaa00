"""Mistral Small 3.1 and 3.2, and Ministral 3 with their vision towers, text.

The text part is a Mistral or a Ministral 3, as `text_config` says.
"""

from kvjax.checkpoints.families import ministral3, mistral
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.text_part import (
  refuse_images,
  text_family,
  text_settings,
)
from kvjax.models.config import ModelConfig

TEXTS = {'mistral': mistral.config, 'ministral3': ministral3.config}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of the decoder of a Mistral 3 with a vision tower."""
  text = text_settings(settings)
  text.only('model_type', *TEXTS)
  of_text = TEXTS[text.get('model_type', 'mistral')]
  return refuse_images(of_text(text), settings, {'image_token_index': 10})


FAMILY = text_family(config, mistral.FAMILY.rows, 'mistral')
