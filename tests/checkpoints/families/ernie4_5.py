"""What tests know of ernie4_5."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 10, 128)}
  return config | {
    'use_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config), base=5e5),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'ernie4_5': Case(
      BASE
      | {
        'model_type': 'ernie4_5',
        'use_bias': True,
        'rope_parameters': rope(theta=500.0),
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2303,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 2,
    'head_dim': 128,
    'rms_norm_eps': 1e-5,
    'rope_theta': 5e5,
    'use_bias': False,
    'tie_word_embeddings': True,
  },
  published={
    'ernie-4.5-0.3b': Figures(
      elements='2*2*128',
      layers=18,
      bytes_per_token=18432,
      parameters=360_748_032,
      source='a public log prints this count for the ERNIE of 18 layers',
    ),
  },
)
