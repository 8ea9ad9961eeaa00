"""What tests know of stablelm."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import NARROW, Case, Facts, Figures, rope

SIZES = {k: v for k, v in NARROW.items() if k != 'rms_norm_eps'} | {
  'model_type': 'stablelm',
  'hidden_size': 48,
}


def draw(d: Draw) -> Config:
  config, width = d.decoder(), d.pick(8, 16)
  config['layer_norm_eps'] = config.pop('rms_norm_eps')
  return config | {
    'hidden_size': width * config['num_attention_heads'],
    'use_qkv_bias': d.flag(),
    'qk_layernorm': d.flag(),
    'use_parallel_residual': d.flag(),
    'rope_parameters': d.partial_rope(width, 0.25, 0.5, 1.0),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'stablelm': Case(
      SIZES
      | {
        'qk_layernorm': True,
        'use_parallel_residual': True,
        'tie_word_embeddings': False,
      },
      bytes_per_token=384,  # 2 * (3*8 + 3*8) * 4
      seed=2002,
    ),
    'stablelm_serial': Case(
      SIZES
      | {
        'use_qkv_bias': True,
        'rope_parameters': rope(
          'linear', factor=2.5, partial_rotary_factor=0.5
        ),
      },
      bytes_per_token=384,  # 2 * (3*8 + 3*8) * 4
      seed=2003,
      old=True,
    ),
  },
  defaults={
    'num_key_value_heads': 32,
    'layer_norm_eps': 1e-5,
    'use_qkv_bias': False,
    'qk_layernorm': False,
    'use_parallel_residual': False,
    'partial_rotary_factor': 0.25,
    'tie_word_embeddings': False,
  },
  published={
    'stablelm-2-12b': Figures(
      elements='2*8*160',
      layers=40,
      bytes_per_token=204800,
      parameters=12143185920,
      source='Safetensors metadata of stabilityai/stablelm-2-12b-chat.',
    ),
  },
)
