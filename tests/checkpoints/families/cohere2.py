"""What tests know of cohere2."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import (
  NARROW,
  PUBLISHED_WINDOW,
  Case,
  Facts,
  Figures,
)


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  config['layer_norm_eps'] = config.pop('rms_norm_eps')
  kinds = [d.pick('sliding_attention', 'full_attention') for _ in range(4)]
  return config | {
    'num_hidden_layers': 4,
    'logit_scale': d.pick(0.0625, 0.8),
    'attention_bias': d.flag(),
    'sliding_window': d.pick(5, 9, PUBLISHED_WINDOW),
    'rope_parameters': d.rope(head_width(config)),
    **d.pick(
      {'layer_types': kinds},
      {'layer_types': None},
      {'sliding_window_pattern': 2},
    ),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'cohere2': Case(
      {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'}
      | {
        'model_type': 'cohere2',
        'logit_scale': 0.5,
        'sliding_window': 7,
        'layer_types': ['sliding_attention', 'full_attention'],
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2206,
    ),
  },
  defaults={
    'num_key_value_heads': None,
    'attention_bias': False,
    'sliding_window': 4096,
    'sliding_window_pattern': 4,
    'logit_scale': 0.0625,
    'layer_norm_eps': 1e-5,
    'tie_word_embeddings': True,
  },
  published={
    'command-r7b': Figures(
      '2*8*128',
      layers=32,
      bytes_per_token=131072,
      window_layers=24,
      window=4096,
      parameters=8028033024,
      source='the count that its config implies',
    ),
  },
)
