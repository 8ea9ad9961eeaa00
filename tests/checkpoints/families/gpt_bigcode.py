"""What tests know of gpt_bigcode."""

from tests.checkpoints.choices import Config, Draw
from tests.checkpoints.families import gpt2
from tests.checkpoints.family_facts import GPT2, Case, Facts


def draw(d: Draw) -> Config:
  config = gpt2.draw(d) | {
    'multi_query': d.flag(),
    'attention_softmax_in_fp32': d.flag(),
    'scale_attention_softmax_in_fp32': d.flag(),
  }
  for key in ('scale_attn_by_inverse_layer_idx', 'reorder_and_upcast_attn'):
    config.pop(key)
  return config


FACTS = Facts(
  draw=draw,
  cases={
    'gpt_bigcode': Case(
      GPT2 | {'model_type': 'gpt_bigcode'},
      bytes_per_token=96,  # 2 * (1*6 + 1*6) * 4
      seed=1015,
    ),
  },
  defaults={},
)
