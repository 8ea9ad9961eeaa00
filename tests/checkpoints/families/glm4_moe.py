"""What tests know of glm4_moe."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  ROUTED,
  ROUTED_DEFAULTS,
  SMALL,
  Case,
  Facts,
  rope,
)


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(8, 12)}
  share = d.pick(0.5, 1.0)
  return (
    config
    | d.routing()
    | {
      'attention_bias': d.flag(),
      'use_qk_norm': d.flag(),
      'num_nextn_predict_layers': 0,
      'rope_parameters': d.rope(config['head_dim'], share=share)
      | {'partial_rotary_factor': share},
    }
  )


FACTS = Facts(
  draw=draw,
  cases={
    'glm4_moe': Case(
      SMALL
      | ROUTED
      | {
        'model_type': 'glm4_moe',
        'head_dim': 8,
        'attention_bias': True,
        'use_qk_norm': True,
        'rope_parameters': rope(partial_rotary_factor=0.5),
      },
      bytes_per_token=128,  # 2 * (1*8 + 1*8) * 4
      seed=1021,
      by_name=False,
    ),
  },
  defaults=ROUTED_DEFAULTS
  | {
    'num_key_value_heads': 8,
    'n_group': 1,
    'topk_group': 1,
    'routed_scaling_factor': 1.0,
    'first_k_dense_replace': 1,
    'use_qk_norm': False,
    'rms_norm_eps': 1e-5,
  },
)
