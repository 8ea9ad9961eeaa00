"""What tests know of qwen3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import qwen2
from tests.checkpoints.family_facts import BASE, Case, Facts, rope


def draw(d: Draw) -> Config:
  config = qwen2.draw(d) | {
    'head_dim': d.pick(6, 10),
    'attention_bias': d.flag(),
  }
  return config | {'rope_parameters': d.rope(config['head_dim'])}


FACTS = Facts(
  draw=draw,
  cases={
    'qwen3': Case(
      BASE
      | {
        'model_type': 'qwen3',
        'rope_parameters': rope(
          'yarn', 1e6, factor=4.0, original_max_position_embeddings=12
        ),
      },
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1009,
    ),
  },
  defaults={'num_key_value_heads': 32, 'head_dim': 128},
)
