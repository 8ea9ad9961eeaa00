"""What tests know of qwen3_moe."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import SMALL, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  return config | {
    'attention_bias': d.flag(),
    'use_sliding_window': d.flag(),
    'sliding_window': 7,
    'num_experts': d.pick(3, 5),
    'num_experts_per_tok': 2,
    'moe_intermediate_size': d.pick(12, 20),
    'norm_topk_prob': d.flag(),
    'decoder_sparse_step': d.pick(1, 2),
    'mlp_only_layers': d.pick([], [1]),
    'rope_parameters': d.rope(config['head_dim']),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'qwen3_moe': Case(
      SMALL
      | {
        'model_type': 'qwen3_moe',
        'num_experts': 5,
        'num_experts_per_tok': 2,
        'moe_intermediate_size': 11,
        'norm_topk_prob': True,
        'mlp_only_layers': [1],
      },
      bytes_per_token=96,  # 2 * (1*6 + 1*6) * 4
      seed=1010,
    ),
  },
  defaults={'num_key_value_heads': 4, 'norm_topk_prob': False},
)
