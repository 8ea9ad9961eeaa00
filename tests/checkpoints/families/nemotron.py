"""What tests know of nemotron."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 8, 16)}
  config['norm_eps'] = config.pop('rms_norm_eps')
  config['hidden_size'] = d.pick(8, 16) * config['num_attention_heads']
  return config | {
    'hidden_act': d.pick('relu2', config['hidden_act']),
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.partial_rope(head_width(config), 0.25, 0.5, 1.0),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'nemotron': Case(
      {k: v for k, v in BASE.items() if k != 'rms_norm_eps'}
      | {
        'model_type': 'nemotron',
        'head_dim': 8,
        'attention_bias': True,
        'mlp_bias': True,
        'tie_word_embeddings': False,
        'rope_parameters': rope(
          'llama3',
          500.0,
          factor=8.0,
          low_freq_factor=1.0,
          high_freq_factor=4.0,
          original_max_position_embeddings=16,
        ),
      },
      bytes_per_token=384,  # 2 * (3*8 + 3*8) * 4
      seed=2008,
    ),
  },
  defaults={
    'hidden_act': 'relu2',
    'norm_eps': 1e-5,
    'attention_bias': False,
    'mlp_bias': False,
    'partial_rotary_factor': 0.5,
    'tie_word_embeddings': False,
  },
  published={
    'nemotron-4-340b': Figures(
      elements='2*8*192',
      layers=96,
      bytes_per_token=589824,
      parameters=341029195776,
      source='arXiv 2406.11704: 9.4e9 of embeddings and 331.6e9 others; the '
      'digits are arithmetic of the config.',
    ),
  },
)
