"""What tests know of mistral."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import BASE, PUBLISHED_WINDOW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(None, 6, 12)}
  return config | {
    'sliding_window': d.pick(None, 5, 9, PUBLISHED_WINDOW),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'mistral': Case(
      BASE | {'model_type': 'mistral', 'sliding_window': 7},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1004,
    ),
  },
  defaults={'num_key_value_heads': 8, 'sliding_window': 4096},
)
