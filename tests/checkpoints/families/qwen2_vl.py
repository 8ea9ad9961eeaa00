"""What tests know of qwen2_vl."""

from typing import Any

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.families import qwen2
from tests.checkpoints.family_facts import (
  NARROW,
  TOWER,
  Case,
  Facts,
  Figures,
  rope,
)


def draw(d: Draw) -> Config:
  return wrap(draw_text(d), TOWER | {'embed_dim': 8, 'mlp_ratio': 1})


def draw_text(d: Draw) -> Config:
  config = qwen2.draw(d)
  width = head_width(config)
  parameters = d.rope(width, base=1e6)
  if parameters['rope_type'] == 'default':
    parameters['rope_type'] = d.pick('default', 'mrope')
  sections = {'mrope_section': [width // 2 - 1, 1, 0]}
  return config | {'rope_parameters': parameters | sections}


def wrap(text: Config, tower: dict[str, Any], width: str = '') -> Config:
  """Returns a config of the whole model; `width` is that of the tower's end."""
  key = 'tie_word_embeddings'
  tower = tower | {width or 'hidden_size': text['hidden_size']}
  return {'text_config': text, 'vision_config': tower, key: text[key]}


FACTS = Facts(
  draw=draw,
  cases={
    'qwen2_vl': Case(
      wrap(
        NARROW
        | {
          'use_sliding_window': True,
          'sliding_window': 7,
          'max_window_layers': 1,
          'tie_word_embeddings': False,
          'rope_parameters': rope('mrope', 1e6, mrope_section=[1, 1, 0]),
        },
        TOWER | {'embed_dim': 8, 'mlp_ratio': 1},
      )
      | {'model_type': 'qwen2_vl'},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2503,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-5,
    'max_window_layers': 80,
    'rope_theta': 1e6,
  },
  published={
    'qwen2-vl-7b': Figures(
      elements='2*4*128',
      layers=28,
      bytes_per_token=57344,
      parameters=7615616512,
      source='that of Qwen2.5-7B, whose sizes its text part has',
    ),
  },
)
