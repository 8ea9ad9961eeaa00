"""What tests know of apertus."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder()
  config |= d.pick({}, {'head_dim': d.pick(6, 10)})
  config['hidden_act'] = d.pick('xielu', 'xielu', config['hidden_act'])
  return config | {
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'apertus': Case(
      BASE
      | {
        'model_type': 'apertus',
        'hidden_act': 'xielu',
        'attention_bias': True,
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
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2502,
    ),
  },
  defaults={
    'hidden_act': 'xielu',
    'num_key_value_heads': None,
    'attention_bias': False,
  },
  published={
    'apertus-8b': Figures(
      elements='2*8*128',
      layers=32,
      bytes_per_token=131072,
      parameters=8053338176,
      source='oakeley/ChromaThink (what loading the model prints)',
    ),
  },
)
