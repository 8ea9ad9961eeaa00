"""What tests know of deepseek_v2."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import (
  MLA,
  MLA_DEFAULTS,
  ROUTED,
  YARN,
  Case,
  Facts,
)


def draw(d: Draw) -> Config:
  routing = d.routing()
  grouped = d.flag()
  routing |= {
    'norm_topk_prob': False,
    'topk_method': 'group_limited_greedy' if grouped else 'greedy',
  }
  if not grouped:
    routing |= d.pick({}, {'n_group': None, 'topk_group': None})
  return d.latent() | routing | {'mlp_bias': d.flag()}


FACTS = Facts(
  draw=draw,
  cases={
    'deepseek_v2': Case(
      MLA
      | ROUTED
      | {
        'model_type': 'deepseek_v2',
        'q_lora_rank': None,
        'mlp_bias': True,
        'norm_topk_prob': False,
        'topk_method': 'group_limited_greedy',
        'rope_parameters': YARN,
      },
      bytes_per_token=112,  # 2 * (10 + 4) * 4, of 3 heads expanded 2*3*(10+5)*4
      seed=1019,
      old=True,
      by_name=False,
    ),
  },
  defaults=MLA_DEFAULTS
  | {
    'n_shared_experts': 2,
    'routed_scaling_factor': 1.0,
    'topk_method': 'greedy',
    'first_k_dense_replace': 0,
    'mlp_bias': False,
    'q_lora_rank': 1536,
  },
)
