"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, weights [in, out].

`c_attn` has the columns of all queries, keys and values in that order.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

OUTER = parse_table("""
  lm_head.weight   V D   head
  transformer.*   *
    wte.weight    V D           embedding
    wpe.weight    positions D   positions
    ln_f.weight   D             norm.weight
    ln_f.bias     D             norm.bias
  transformer.h.{i}.*   layers.{i}.*
    ln_1.weight   D   attention_norm.weight
    ln_1.bias     D   attention_norm.bias
    ln_2.weight   D   mlp_norm.weight
    ln_2.bias     D   mlp_norm.bias
""")

PROJECTIONS = parse_table("""
  transformer.h.{i}.*   layers.{i}.*
    attn.c_attn.weight   D 3*D   attention.query         [:0:D] transpose
    attn.c_attn.weight   D 3*D   attention.key           [:D:2*D] transpose
    attn.c_attn.weight   D 3*D   attention.value         [:2*D:] transpose
    attn.c_attn.bias     3*D     attention.query_bias    [:D]
    attn.c_attn.bias     3*D     attention.key_bias      [D:2*D]
    attn.c_attn.bias     3*D     attention.value_bias    [2*D:]
    attn.c_proj.weight   D D     attention.output        transpose
    attn.c_proj.bias     D       attention.output_bias
    mlp.c_fc.weight      D F     mlp.up                  transpose
    mlp.c_fc.bias        F       mlp.up_bias
    mlp.c_proj.weight    F D     mlp.down                transpose
    mlp.c_proj.bias      D       mlp.down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GPT-2 config.json."""
  by_depth = settings.get('scale_attn_by_inverse_layer_idx', False)
  attentions = [
    attention(settings, settings.need('n_head'), i + 1 if by_depth else 1)
    for i in range(settings.need('n_layer'))
  ]
  return model(settings, attentions)


def attention(settings: Settings, kv_heads: int, depth: int = 1) -> Grouped:
  """Returns the attention of a layer, its scale divided by `depth`.

  The scale is 1 for `scale_attn_weights: false`.
  """
  heads = settings.need('n_head')
  width = settings.divide('n_embd', settings.need('n_embd'), heads)
  scaled = settings.get('scale_attn_weights', True)
  return Grouped(
    heads,
    kv_heads,
    width,
    scale=(width**-0.5 if scaled else 1.0) / depth,
    projection_bias=True,
    output_bias=True,
  )


def model(settings: Settings, attentions: list[Grouped]) -> ModelConfig:
  """Returns the config of GPT-2 with the attention of each layer."""
  settings.refuse('add_cross_attention')
  width = settings.need('n_embd')
  mlp = MLP(
    settings.get('n_inner', 4 * width),
    settings.activation('activation_function', default='gelu_new'),
    gated=False,
    bias=True,
  )
  eps = settings.get('layer_norm_epsilon', 1e-5)
  return settings.model(
    [Layer(attention, mlp) for attention in attentions],
    tied=True,
    norm=Norm(eps, centered=True, bias=True),
    positions=settings.need('n_positions', 'n_ctx'),
  )


FAMILY = Family(
  config,
  OUTER + PROJECTIONS,
  prefix='transformer.',
  ignored=(r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',),
  copies={'lm_head.weight': 'transformer.wte.weight'},
)
