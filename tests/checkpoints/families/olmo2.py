"""What tests know of olmo2."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config)),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'olmo2': Case(
      NARROW | {'model_type': 'olmo2'},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=1028,
    ),
  },
  defaults={},
)
