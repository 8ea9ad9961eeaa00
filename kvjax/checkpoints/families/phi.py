"""Phi-1, Phi-1.5 (arXiv 2309.05463) and Phi-2 (2023): a parallel block.

Attention and MLP read one LayerNorm, half or less of each head is rotated, and
every projection has a bias, the head of the model too.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

ROWS = parse_table("""
  lm_head.weight   V D   head
  lm_head.bias     V     head_bias
  model.*   *
    embed_tokens.weight      V D   embedding
    final_layernorm.weight   D     norm.weight
    final_layernorm.bias     D     norm.bias
  model.layers.{i}.*   layers.{i}.*
    input_layernorm.weight   D     attention_norm.weight
    input_layernorm.bias     D     attention_norm.bias
    mlp.fc1.weight           F D   mlp.up
    mlp.fc1.bias             F     mlp.up_bias
    mlp.fc2.weight           D F   mlp.down
    mlp.fc2.bias             D     mlp.down_bias
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_proj.weight        N*H D   query
    q_proj.bias          N*H     query_bias
    k_proj.weight        K*H D   key
    k_proj.bias          K*H     key_bias
    v_proj.weight        K*H D   value
    v_proj.bias          K*H     value_bias
    dense.weight         D N*H   output
    dense.bias           D       output_bias
    q_layernorm.weight   H       query_norm.weight
    q_layernorm.bias     H       query_norm.bias
    k_layernorm.weight   H       key_norm.weight
    k_layernorm.bias     H       key_norm.bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Phi config.json."""
  norm = Norm(settings.get('layer_norm_eps', 1e-5), centered=True, bias=True)
  attention = grouped(
    settings,
    rotary=rotary(settings, settings.head_width(), partial=0.5),
    bias=True,
    qk_norm=norm if settings.get('qk_layernorm', False) else None,
  )
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act', default='gelu_new'),
    gated=False,
    bias=True,
  )
  layers = [Layer(attention, mlp, parallel='shared')]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=False,
    norm=norm,
    head_bias=True,
  )


FAMILY = Family(config, ROWS)
