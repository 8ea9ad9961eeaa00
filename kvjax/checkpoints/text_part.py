"""The decoder of a model that also reads images and videos: its text part.

The vision tower is left out. A token of text has three equal positions (time,
height, width), so multimodal rotary positions (mRoPE, arXiv 2409.12191, section
2.1) are plain ones. The ids that stand for an image are refused.
"""

import dataclasses
from collections.abc import Callable, Mapping

from kvjax.checkpoints.family import Family, rename_rows
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import replace_rope, rope_parameters
from kvjax.checkpoints.table import TableRow
from kvjax.models.config import ModelConfig

WHOLE = 'dtype', 'torch_dtype', 'tie_word_embeddings'  # keys of the whole model
IGNORED = (
  r'.*\.rotary_emb\.inv_freq',
  r'(model\.)?(visual|vision_model|vision_tower|multi_modal_projector)\..*',
)


def text_settings(settings: Settings) -> Settings:
  """Returns `text_config`, and from the whole model what it does not say."""
  whole = {k: v for k, v in settings.values.items() if k in WHOLE}
  return Settings(whole | dict(settings.need('text_config')))


def plain_rope(settings: Settings, base: float) -> Settings:
  """Returns settings whose multimodal rotary positions are plain ones.

  Args:
    settings: of the text part.
    base: published default of `rope_theta`.
  """
  rope = {'rope_theta': settings.get('rope_theta', base)}
  rope |= rope_parameters(settings)
  for key in ('mrope_section', 'mrope_interleaved'):
    rope.pop(key, None)
  if rope.get('rope_type', rope.get('type')) == 'mrope':
    rope['rope_type'] = 'default'
  return replace_rope(settings, rope)


def refuse_images(
  config: ModelConfig, settings: Settings, ids: Mapping[str, int]
) -> ModelConfig:
  """Returns a config that refuses the ids that stand for an image or a video.

  Args:
    config: of the text part.
    settings: of the whole model.
    ids: published defaults of the keys that config.json has for them.
  """
  found = {settings.get(key, default) for key, default in ids.items()}
  inside = sorted(id for id in found if id < config.vocab_size)
  return dataclasses.replace(config, refused_ids=tuple(inside))


def text_family(
  config: Callable[[Settings], ModelConfig],
  rows: tuple[TableRow, ...],
  text: str,
  outer: str = 'language_model.',
) -> Family:
  """Returns the family of a model whose text part is of another family.

  Args:
    config: of the text part, from the config.json of the whole model.
    rows: of the family of the text part.
    text: `model_type` of the text part alone.
    outer: what the older of two published spellings has before each name. The
      newer one has `model.language_model.` for `model.`.
  """
  newer = rename_rows(rows, 'model.', 'model.language_model.')
  copies = {
    'lm_head.weight': 'model.language_model.embed_tokens.weight',
    f'{outer}lm_head.weight': f'{outer}model.embed_tokens.weight',
  }
  return Family(
    config,
    newer + rename_rows(rows, '', outer),
    ignored=IGNORED,
    copies=copies,
    text=text,
  )
