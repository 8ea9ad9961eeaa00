"""What tests know of qwen2."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'use_sliding_window': d.flag(),
    'sliding_window': d.pick(5, 9),
    'max_window_layers': d.pick(0, 1, 2),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'qwen2': Case(
      NARROW
      | {
        'model_type': 'qwen2',
        'use_sliding_window': True,
        'sliding_window': 5,
        'max_window_layers': 1,
      },
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=1008,
      old=True,
    ),
  },
  defaults={'num_key_value_heads': 32, 'use_sliding_window': False},
)
