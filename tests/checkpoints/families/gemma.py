"""What tests know of gemma."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.family_facts import BASE, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder() | {'head_dim': d.pick(6, 10)}
  return config | {
    'attention_bias': d.flag(),
    'rope_parameters': d.rope(config['head_dim']),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'gemma': Case(
      BASE | {'model_type': 'gemma', 'hidden_act': 'gelu'},
      bytes_per_token=288,  # 2 * (3*6 + 3*6) * 4
      seed=1026,
    ),
  },
  defaults={'num_key_value_heads': 16, 'hidden_act': 'gelu_pytorch_tanh'},
)
