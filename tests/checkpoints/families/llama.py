"""What tests know of llama."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, SMALL, Case, Facts, rope


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 8, 12)}
  return config | {
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'llama': Case(
      BASE | {'model_type': 'llama', 'tie_word_embeddings': False},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1000,
    ),
    'llama3_old': Case(
      BASE
      | {
        'model_type': 'llama',
        'attention_bias': True,
        'mlp_bias': True,
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
      seed=1001,
      old=True,
    ),
    'llama_dynamic': Case(
      SMALL
      | {
        'model_type': 'llama',
        'max_position_embeddings': 12,
        'rope_parameters': rope('dynamic', factor=3.0),
      },
      bytes_per_token=96,  # 2 * (1*6 + 1*6) * 4
      seed=1002,
      old=True,
      by_name=False,
    ),
    'llama_linear_shards': Case(
      SMALL
      | {
        'model_type': 'llama',
        'rope_parameters': rope('linear', factor=2.5),
      },
      bytes_per_token=96,  # 2 * (1*6 + 1*6) * 4
      seed=1003,
      shard='20KB',
    ),
  },
  defaults={'num_key_value_heads': 64, 'rms_norm_eps': 1e-6},
)
