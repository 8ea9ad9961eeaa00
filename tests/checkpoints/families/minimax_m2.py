"""What tests know of minimax_m2."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import SMALL, Case, Facts, Figures, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(8, 12)}
  share = d.pick(None, 0.5, 1.0)
  # An older config.json has the rotated features and not their share.
  rotated = {'rotary_dim': d.pick(4, config['head_dim'])} if not share else {}
  part = share or rotated['rotary_dim'] / config['head_dim']
  said = {'partial_rotary_factor': share} if share else {}
  return (
    config
    | rotated
    | {
      'num_local_experts': d.pick(3, 5),
      'num_experts_per_tok': d.pick(1, 2, 3),
      'rope_parameters': d.rope(config['head_dim'], base=5e6, share=part)
      | said,
    }
  )


FACTS = Facts(
  draw=draw,
  cases={
    'minimax_m2': Case(
      SMALL
      | {
        'model_type': 'minimax_m2',
        'head_dim': 8,
        'intermediate_size': 11,
        'num_local_experts': 5,
        'num_experts_per_tok': 2,
        'tie_word_embeddings': False,
        'rotary_dim': 4,
        'rope_parameters': rope(theta=5e6),
      },
      bytes_per_token=128,  # 2 * (1*8 + 1*8) * 4
      seed=2402,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'head_dim': 128,
    'num_experts_per_tok': 8,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
  },
  published={
    'minimax-m2': Figures(
      elements='2*8*128',
      layers=62,
      bytes_per_token=253952,
      parameters=228689764864,
      source='parameters as config.json implies them, corrections included',
    ),
  },
)
