"""What tests know of phi3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  NARROW,
  Case,
  Facts,
  rope,
)

SHORT = [1.0, 1.1, 1.2]
LONG = [1.5, 2.5, 4.5]


def draw(d: Draw) -> Config:
  config = d.decoder()
  width = d.pick(8, 12)
  share = d.pick(1.0, 0.5)
  config['hidden_size'] = width * config['num_attention_heads']
  rope = d.rope(width, 'default', 'longrope', share=share)
  original = rope.pop('original_max_position_embeddings', 16)
  return config | {
    'max_position_embeddings': d.pick(original, 64),
    'original_max_position_embeddings': original,
    'sliding_window': d.pick(None, 7),
    'rope_parameters': rope | {'partial_rotary_factor': share},
  }


FACTS = Facts(
  draw=draw,
  cases={
    'phi3': Case(
      NARROW
      | {
        'model_type': 'phi3',
        'hidden_size': 36,
        'original_max_position_embeddings': 12,
        'rope_parameters': rope(
          'longrope',
          short_factor=SHORT,
          long_factor=LONG,
          original_max_position_embeddings=12,
          partial_rotary_factor=1.0,
        ),
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1013,
      old=True,
      by_name=False,
    ),
  },
  defaults={},
)
