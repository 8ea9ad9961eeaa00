"""What tests know of smollm3."""

from tests.checkpoints.choices import Config, Draw, head_width
from tests.checkpoints.family_facts import NARROW, Case, Facts


def draw(d: Draw) -> Config:
  config = d.decoder()
  return config | {
    'num_hidden_layers': 3,
    'no_rope_layer_interval': d.pick(2, 3),
    'use_sliding_window': d.flag(),
    'sliding_window': 7,
    'attention_bias': d.flag(),
    'mlp_bias': d.flag(),
    'rope_parameters': d.rope(head_width(config), base=2e6),
  }


FACTS = Facts(
  draw=draw,
  cases={
    'smollm3': Case(
      NARROW | {'model_type': 'smollm3', 'no_rope_layer_interval': 2},
      bytes_per_token=192,  # 2 * (3*4 + 3*4) * 4
      seed=1027,
    ),
  },
  defaults={'num_key_value_heads': 4, 'tie_word_embeddings': True},
)
