"""What tests know of starcoder2."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | d.pick({}, {'head_dim': 6}, {'head_dim': 10})
  config['norm_epsilon'] = config.pop('rms_norm_eps')
  return config | {
    'use_bias': d.flag(),
    'sliding_window': d.pick(None, 5, 9),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'starcoder2': Case(
      {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'}
      | {
        'model_type': 'starcoder2',
        'sliding_window': 5,
        'rope_parameters': rope(theta=500.0),
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=2006,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 2,
    'hidden_act': 'gelu_pytorch_tanh',
    'norm_epsilon': 1e-5,
    'use_bias': True,
    'sliding_window': None,
    'tie_word_embeddings': True,
  },
  published={
    'starcoder2-7b': Figures(
      elements='2*4*128',
      layers=32,
      bytes_per_token=65536,
      window_layers=32,
      window=4096,
      parameters=7173923840,
      source='Arithmetic of the config; no printed count was found.',
    ),
  },
)
