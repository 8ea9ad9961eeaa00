"""What tests know of glm4_moe_lite."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  MLA,
  ROUTED,
  ROUTED_DEFAULTS,
  Case,
  Facts,
)


def draw(d: Draw) -> Config:
  routing = d.routing()
  routing.pop('first_k_dense_replace')
  return (
    d.latent()
    | routing
    | {
      'mlp_layer_types': d.pick(None, ['sparse', 'dense'], ['sparse'] * 2),
      'rope_interleave': d.flag(),
      'num_nextn_predict_layers': 0,
    }
  )


FACTS = Facts(
  draw=draw,
  cases={
    'glm4_moe_lite': Case(
      MLA | ROUTED | {'model_type': 'glm4_moe_lite'},
      bytes_per_token=112,  # 2 * (10 + 4) * 4
      seed=1022,
      by_name=False,
    ),
  },
  defaults=ROUTED_DEFAULTS
  | {
    'n_group': 1,
    'topk_group': 1,
    'routed_scaling_factor': 1.8,
    'q_lora_rank': 768,
    'rms_norm_eps': 1e-5,
  },
)
