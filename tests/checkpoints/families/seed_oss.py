"""What tests know of seed_oss."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, Case, Facts, Figures


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 10, 128)}
  return config | {
    'attention_bias': d.flag(),
    'attention_out_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'seed_oss': Case(
      BASE
      | {
        'model_type': 'seed_oss',
        'attention_bias': True,
        'attention_out_bias': True,
        'mlp_bias': True,
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=2302,
      by_name=False,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'head_dim': 128,
    'rms_norm_eps': 1e-6,
    'attention_bias': True,
    'attention_out_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': False,
  },
  published={
    'seed-oss-36b': Figures(
      elements='2*8*128',
      layers=64,
      bytes_per_token=262144,
      parameters=36_151_104_512,
      source='a public snapshot of the Hub of 2026-05-13 has this count',
    ),
  },
)
