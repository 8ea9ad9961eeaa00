"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): fused projections.

`query_key_value` has the rows of query, key and value head by head. Attention
and MLP are parallel, each behind a norm, unless `use_parallel_residual` is
false. The base of the rotation and the share of a head that is rotated have
keys of this family, and those alone count.
"""

import dataclasses

from kvjax.attention.grouped import Grouped
from kvjax.attention.rotary import Rotary
from kvjax.checkpoints.family import Family, rename_rows
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import SHARE, rotary
from kvjax.checkpoints.shared_rows import FUSED_BY_HEAD, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

ROWS = parse_table("""
  embed_out.weight   V D   head
  gpt_neox.*   *
    embed_in.weight           V D   embedding
    final_layer_norm.weight   D     norm.weight
    final_layer_norm.bias     D     norm.bias
  gpt_neox.layers.{i}.mlp.*   layers.{i}.mlp.*
    dense_h_to_4h.weight   F D   up
    dense_h_to_4h.bias     F     up_bias
    dense_4h_to_h.weight   D F   down
    dense_4h_to_h.bias     D     down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GPT-NeoX config.json."""
  norm = Norm(settings.get('layer_norm_eps', 1e-5), centered=True, bias=True)
  heads = settings.need('num_attention_heads')
  hidden = settings.need('hidden_size')
  width = settings.divide('hidden_size', hidden, heads)
  # Published code reads it for the rotation, and not for the heads.
  settings.only('head_dim', width)
  bias = settings.get('attention_bias', True)
  attention = Grouped(
    heads,
    heads,
    width,
    rotary=_rotary(settings, width),
    projection_bias=bias,
    output_bias=bias,
  )
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act', default='gelu'),
    gated=False,
    bias=True,
  )
  parallel = settings.get('use_parallel_residual', True)
  layer = Layer(attention, mlp, parallel='separate' if parallel else None)
  layers = [layer] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=norm)


def _rotary(settings: Settings, width: int) -> Rotary:
  """Returns the rotation of a head, by the keys of this family."""
  keys = {
    'rope_theta': settings.get('rotary_emb_base', 10000.0),
    SHARE: settings.get('rotary_pct', 0.25),
  }
  settings = dataclasses.replace(settings, values={**settings.values, **keys})
  return rotary(settings, width, partial=1.0)


FAMILY = Family(
  config,
  ROWS
  + rename_rows(NORMS, 'model.', 'gpt_neox.')
  + rename_rows(
    FUSED_BY_HEAD,
    'model.layers.{i}.self_attn.',
    'gpt_neox.layers.{i}.attention.',
  ),
  prefix='gpt_neox.',
  ignored=(
    r'(gpt_neox\.)?layers\.\d+\.attention\.'
    r'(bias|masked_bias|rotary_emb\.inv_freq)',
  ),
  copies={'embed_out.weight': 'gpt_neox.embed_in.weight'},
)
