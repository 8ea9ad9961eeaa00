"""Falcon (arXiv 2311.16867): MQA, grouped heads, or MHA with ALiBi.

All three published layouts of `query_key_value` are the same: for each kv head
its queries, its key and its value. Attention and MLP read the same input unless
`parallel_attn` is false. Slopes of ALiBi and their products with positions are
rounded to bfloat16, and scaled with the scores.
"""

import math

from kvjax.attention.bias import Alibi
from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family, rename_rows
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import FUSED_BY_HEAD
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

ROWS = parse_table("""
  lm_head.weight   V D   head
  transformer.*   *
    word_embeddings.weight   V D   embedding
    ln_f.weight              D     norm.weight
    ln_f.bias                D     norm.bias
  transformer.h.{i}.*   layers.{i}.*
    input_layernorm.weight            D   attention_norm.weight
    input_layernorm.bias              D   attention_norm.bias
    post_attention_layernorm.weight   D   mlp_norm.weight
    post_attention_layernorm.bias     D   mlp_norm.bias
    ln_attn.weight                    D   attention_norm.weight
    ln_attn.bias                      D   attention_norm.bias
    ln_mlp.weight                     D   mlp_norm.weight
    ln_mlp.bias                       D   mlp_norm.bias
    mlp.dense_h_to_4h.weight          F D   mlp.up
    mlp.dense_h_to_4h.bias            F     mlp.up_bias
    mlp.dense_4h_to_h.weight          D F   mlp.down
    mlp.dense_4h_to_h.bias            D     mlp.down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Falcon config.json."""
  width = settings.need('hidden_size', 'n_embed')
  layer = Layer(
    _attention(settings, width),
    MLP(
      settings.get('ffn_hidden_size', 4 * width),
      settings.activation('activation', default='gelu'),
      gated=False,
      bias=settings.get('bias', False),
    ),
    parallel=_parallel(settings),
  )
  eps = settings.get('layer_norm_epsilon', 1e-5)
  return settings.model(
    [layer] * settings.need('num_hidden_layers'),
    tied=True,
    norm=Norm(eps, centered=True, bias=True),
  )


def _attention(settings: Settings, hidden: int) -> Grouped:
  heads = settings.need('num_attention_heads')
  width = settings.divide('hidden_size', hidden, heads)
  kv_heads = 1 if settings.get('multi_query', True) else heads
  if settings.get('new_decoder_architecture', False):
    kv_heads = settings.get('num_kv_heads', heads)
  alibi = settings.get('alibi', False)
  bias = settings.get('bias', False)
  return Grouped(
    heads,
    kv_heads,
    width,
    rotary=None if alibi else rotary(settings, width),
    bias=Alibi(1 / math.sqrt(width), rounded=True) if alibi else None,
    projection_bias=bias,
    output_bias=bias,
  )


def _parallel(settings: Settings) -> str | None:
  grouped = settings.get('new_decoder_architecture', False)
  if grouped:
    settings.only('parallel_attn', True)
    settings.only('num_ln_in_parallel_attn', 1, 2)
  else:
    settings.only('num_ln_in_parallel_attn', 1)
  if not settings.get('parallel_attn', True):
    return None
  norms = settings.get('num_ln_in_parallel_attn', 2 if grouped else 1)
  return 'separate' if norms == 2 else 'shared'


FAMILY = Family(
  config,
  ROWS
  + rename_rows(
    FUSED_BY_HEAD,
    'model.layers.{i}.self_attn.',
    'transformer.h.{i}.self_attention.',
  ),
  prefix='transformer.',
  copies={'lm_head.weight': 'transformer.word_embeddings.weight'},
)
