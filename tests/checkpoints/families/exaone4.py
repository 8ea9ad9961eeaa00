"""What tests know of exaone4."""

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
  window = d.pick(5, 9, PUBLISHED_WINDOW)
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(3)]
  pattern = 'sliding_window_pattern'
  return config | {
    'num_hidden_layers': 3,
    'rope_parameters': d.rope(head_width(config)),
    # transformers reads a text, and no window, next to layer_types alone.
    **d.pick(
      {'sliding_window': window, pattern: d.pick(1, 2, 3)},
      {'sliding_window': window, pattern: 'LLG', 'layer_types': kinds},
      {
        'sliding_window': None,
        pattern: None,
        'layer_types': ['full_attention'] * 3,
      },
    ),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'exaone4': Case(
      NARROW
      | {
        'model_type': 'exaone4',
        'sliding_window': 7,
        'sliding_window_pattern': 'LG',
        'layer_types': ['sliding_attention', 'full_attention'],
        'rope_parameters': rope(
          'llama3',
          1e6,
          factor=16.0,
          low_freq_factor=1.0,
          high_freq_factor=4.0,
          original_max_position_embeddings=12,
        ),
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2204,
      old=True,  # as published
    ),
    'exaone4_global': Case(
      NARROW
      | {
        'model_type': 'exaone4',
        'num_attention_heads': 3,
        'num_key_value_heads': 1,
        'sliding_window': None,
        'sliding_window_pattern': None,
        'layer_types': ['full_attention'] * 2,
      },
      bytes_per_token=128,  # 2 * (1*8 + 1*8) * 4
      seed=2205,
    ),
  },
  defaults={
    'num_key_value_heads': 32,
    'sliding_window': 4096,
    'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False,
  },
  published={
    'exaone-4.0-32b': Figures(
      '2*8*128',
      layers=64,
      bytes_per_token=262144,
      window_layers=48,
      window=4096,
      parameters=32003216384,
      source='the count that its config implies; its model card prints 30.95B '
      'without embeddings',
    ),
  },
)
