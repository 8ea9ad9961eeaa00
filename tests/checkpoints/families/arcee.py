"""What tests know of arcee."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 10)}
  return config | {
    'hidden_act': d.pick('relu2', config['hidden_act']),
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'arcee': Case(
      BASE
      | {
        'model_type': 'arcee',
        'attention_bias': True,
        'mlp_bias': True,
        'rope_parameters': rope(
          'yarn', factor=8.0, original_max_position_embeddings=8
        ),
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2304,
    ),
  },
  defaults={
    'num_key_value_heads': 64,
    'hidden_act': 'relu2',
    'rms_norm_eps': 1e-5,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
  },
  published={
    'afm-4.5b': Figures(
      elements='2*4*128',
      layers=36,
      bytes_per_token=73728,
      parameters=4_619_184_640,
      source='no exact count found; this is what the config implies',
    ),
  },
)
