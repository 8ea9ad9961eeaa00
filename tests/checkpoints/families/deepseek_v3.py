"""What tests know of deepseek_v3."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  MLA,
  MLA_DEFAULTS,
  ROUTED,
  ROUTED_DEFAULTS,
  YARN,
  Case,
  Facts,
)


def draw(d: Draw) -> Config:
  return (
    d.latent()
    | d.routing()
    | {
      'rope_interleave': d.flag(),
      'num_nextn_predict_layers': 0,
    }
  )


FACTS = Facts(
  draw=draw,
  cases={
    'deepseek_v3': Case(
      MLA
      | ROUTED
      | {
        'model_type': 'deepseek_v3',
        'attention_bias': True,
        'rope_parameters': YARN,
      },
      bytes_per_token=112,  # 2 * (10 + 4) * 4
      seed=1005,
      by_name=False,
    ),
  },
  defaults=MLA_DEFAULTS
  | ROUTED_DEFAULTS
  | {
    'n_group': 8,
    'topk_group': 4,
    'routed_scaling_factor': 2.5,
    'first_k_dense_replace': 3,
    'q_lora_rank': 1536,
    'rope_interleave': True,
  },
)
