"""What tests know of olmo3."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import (
  NARROW,
  PUBLISHED_WINDOW,
  Case,
  Facts,
  Figures,
  rope,
)


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(3)]
  rope = {
    'full_attention': d.rope(head_width(config), base=5e5),
    'sliding_attention': d.rope(head_width(config), base=5e5),
  }
  for part in rope.values():
    part.pop('truncate', None)  # not read in nested rope parameters
  return config | {
    'attention_bias': d.flag(),
    'sliding_window': d.pick(5, 9, PUBLISHED_WINDOW),
    'rope_parameters': rope,
    **d.pick(
      {'num_hidden_layers': 3, 'layer_types': kinds},
      {'num_hidden_layers': 4, 'layer_types': None},
    ),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'olmo3': Case(
      NARROW
      | {
        'model_type': 'olmo3',
        'sliding_window': 7,
        'layer_types': ['sliding_attention', 'full_attention'],
        'rope_parameters': {
          'full_attention': rope(
            'yarn',
            5e5,
            factor=8.0,
            original_max_position_embeddings=12,
            attention_factor=1.2,
          ),
          'sliding_attention': rope(theta=5e5),
        },
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2202,
      old=True,  # as published
    ),
  },
  defaults={
    'num_key_value_heads': None,
    'attention_bias': False,
    'sliding_window': 4096,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False,
  },
  published={
    'olmo-3-7b': Figures(
      '2*32*128',
      layers=32,
      bytes_per_token=524288,
      window_layers=24,
      window=4096,
      parameters=7298011136,
      source='the count that its config implies',
    ),
  },
)
