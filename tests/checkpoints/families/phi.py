"""What tests know of phi."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures, rope

SIZES = {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'} | {
  'model_type': 'phi',
  'hidden_size': 60,
}

# Of a width of head: shares that rotate an even number of its features.
SHARES = {8: (0.25, 0.5, 1.0), 10: (0.4, 1.0)}


def draw(d: Draw) -> Config:
  config, width = d.decoder(), d.pick(8, 10)
  config['layer_norm_eps'] = config.pop('rms_norm_eps')
  return config | {
    'hidden_size': width * config['num_attention_heads'],
    'num_key_value_heads': d.pick(None, config['num_key_value_heads']),
    'qk_layernorm': d.flag(),
    'rope_parameters': d.partial_rope(width, *SHARES[width]),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'phi': Case(
      SIZES
      | {
        'num_key_value_heads': None,
        'tie_word_embeddings': False,
        'rope_parameters': rope(partial_rotary_factor=0.4),
      },
      bytes_per_token=960,  # 2 * (6*10 + 6*10) * 4
      seed=2004,
      old=True,
    ),
    'phi_grouped': Case(
      SIZES
      | {
        'qk_layernorm': True,
        'hidden_size': 48,
        'max_position_embeddings': 12,
        'rope_parameters': rope('dynamic', factor=3.0),
      },
      bytes_per_token=384,  # 2 * (3*8 + 3*8) * 4
      seed=2005,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': None,
    'hidden_act': 'gelu_new',
    'layer_norm_eps': 1e-5,
    'qk_layernorm': False,
    'partial_rotary_factor': 0.5,
    'tie_word_embeddings': False,
  },
  published={
    'phi-2': Figures(
      elements='2*32*80',
      layers=32,
      bytes_per_token=327680,
      parameters=2779683840,
      source='Safetensors metadata of microsoft/phi-2.',
    ),
  },
)
