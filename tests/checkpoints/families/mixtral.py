"""What tests know of mixtral."""

from tests.checkpoints.choices import PLAIN_ROPES, Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 12)}
  kinds = PLAIN_ROPES if config['head_dim'] is None else ()
  return config | {
    'num_local_experts': d.pick(3, 4, 8),
    'num_experts_per_tok': d.pick(1, 2, 3),
    'sliding_window': d.pick(None, 5),
    'rope_parameters': d.rope(head_width(config), *kinds, base=1e6),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'mixtral': Case(
      NARROW
      | {
        'model_type': 'mixtral',
        'num_local_experts': 4,
        'num_experts_per_tok': 2,
        'intermediate_size': 13,
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=1007,
    ),
  },
  defaults={
    'num_key_value_heads': 8,
    'num_local_experts': 8,
    'num_experts_per_tok': 2,
    'sliding_window': None,
  },
)
