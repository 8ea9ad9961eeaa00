"""What tests know of qwen2_5_vl."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import qwen2_vl
from tests.checkpoints.family_facts import (
  NARROW,
  TOWER,
  Case,
  Facts,
  Figures,
  rope,
)

VISION = TOWER | {'intermediate_size': 4, 'fullatt_block_indexes': [0]}


def draw(d: Draw) -> Config:
  return qwen2_vl.wrap(qwen2_vl.draw_text(d), VISION, 'out_hidden_size')


FACTS = Facts(
  draw=draw,
  cases={
    'qwen2_5_vl': Case(
      qwen2_vl.wrap(
        NARROW
        | {
          'rope_parameters': rope(
            'yarn',
            1e6,
            factor=4.0,
            original_max_position_embeddings=12,
            mrope_section=[1, 1, 0],
          ),
        },
        VISION,
        'out_hidden_size',
      )
      | {'model_type': 'qwen2_5_vl'},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2504,
    ),
  },
  defaults=qwen2_vl.FACTS.defaults,
  published={
    'qwen2.5-vl-7b': Figures(
      elements='2*4*128',
      layers=28,
      bytes_per_token=57344,
      parameters=7615616512,
      source='that of Qwen2.5-7B, whose sizes its text part has',
    ),
  },
)
