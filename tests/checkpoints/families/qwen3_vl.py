"""What tests know of qwen3_vl."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import qwen2_vl
from tests.checkpoints.family_facts import (
  BASE,
  TOWER,
  Case,
  Facts,
  Figures,
  rope,
)

VISION = TOWER | {
  'intermediate_size': 4,
  'num_position_embeddings': 4,
  'deepstack_visual_indexes': [0],
}


def draw(d: Draw) -> Config:
  width = d.pick(6, 10)
  parameters = d.rope(width, base=5e5) | {
    'mrope_section': [width // 2 - 2, 1, 1],
    **d.pick({}, {'mrope_interleaved': True}),
  }
  text = d.decoder() | {
    'head_dim': width,
    'attention_bias': d.flag(),
    'rope_parameters': parameters,
  }
  return qwen2_vl.wrap(text, VISION, 'out_hidden_size')


FACTS = Facts(
  draw=draw,
  cases={
    'qwen3_vl': Case(
      qwen2_vl.wrap(
        BASE
        | {
          'attention_bias': True,
          'rope_parameters': rope(
            theta=5e6, mrope_section=[1, 1, 1], mrope_interleaved=True
          ),
        },
        VISION,
        'out_hidden_size',
      )
      | {'model_type': 'qwen3_vl'},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2505,
    ),
  },
  defaults={'num_key_value_heads': 32, 'head_dim': 128},
  published={
    'qwen3-vl-8b': Figures(
      elements='2*8*128',
      layers=36,
      bytes_per_token=147456,
      parameters=8190735360,
      source='that of Qwen3-8B, whose sizes its text part has',
    ),
  },
)
