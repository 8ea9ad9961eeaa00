"""GPTBigCode: SantaCoder and StarCoder (arXiv 2305.06161), GPT-2 with MQA.

Weights are [out, in]. `c_attn` has the rows of all queries, of the key and of
the value, in that order, for the single kv head; with `multi_query: false` it
has query, key and value of each head.
"""

import dataclasses

from kvjax.checkpoints.families import gpt2
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import parse_table
from kvjax.models.config import ModelConfig

PROJECTIONS = parse_table("""
  transformer.h.{i}.*   layers.{i}.*
    attn.c_attn.weight   K*(G+2)*H D   attention.query         queries
    attn.c_attn.weight   K*(G+2)*H D   attention.key           keys
    attn.c_attn.weight   K*(G+2)*H D   attention.value         values
    attn.c_attn.bias     K*(G+2)*H     attention.query_bias    queries
    attn.c_attn.bias     K*(G+2)*H     attention.key_bias      keys
    attn.c_attn.bias     K*(G+2)*H     attention.value_bias    values
    attn.c_proj.weight   D D           attention.output
    attn.c_proj.bias     D             attention.output_bias
    mlp.c_fc.weight      F D           mlp.up
    mlp.c_fc.bias        F             mlp.up_bias
    mlp.c_proj.weight    D F           mlp.down
    mlp.c_proj.bias      D             mlp.down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GPTBigCode config.json."""
  shared = settings.get('multi_query', True)
  attention = gpt2.attention(settings, 1 if shared else settings.need('n_head'))
  return gpt2.model(settings, [attention] * settings.need('n_layer'))


FAMILY = dataclasses.replace(
  gpt2.FAMILY, config=config, rows=gpt2.OUTER + PROJECTIONS
)
