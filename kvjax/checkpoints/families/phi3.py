"""Phi-3 and Phi-4 (arXiv 2404.14219): fused projections and longrope.

`qkv_proj` has the rows of all queries, keys and values in that order, and
`gate_up_proj` has the rows of gate and up. longrope has two tables; the planned
length chooses between them: give it as `rotary_length`.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility

ROWS = (
  ENDS
  + NORMS
  + parse_table(
    'model.layers.{i}.',
    'layers.{i}.',
    """
  self_attn.qkv_proj.weight   (N+K+K)*H D   attention.query    [:N*H]
  self_attn.qkv_proj.weight   (N+K+K)*H D   attention.key      [N*H:(N+K)*H]
  self_attn.qkv_proj.weight   (N+K+K)*H D   attention.value    [(N+K)*H:]
  self_attn.o_proj.weight     D N*H         attention.output
  mlp.gate_up_proj.weight     2*F D         mlp.gate           [:F]
  mlp.gate_up_proj.weight     2*F D         mlp.up             [F:]
  mlp.down_proj.weight        D F           mlp.down
""",
  )
)


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Phi-3 config.json."""
  width = settings.head_width()
  attention = Grouped(
    settings.need('num_attention_heads'),
    settings.kv_heads(),
    width,
    rotary=rotary(settings, width, partial=1.0, aliases=ALIASES),
    visibility=Visibility(window=settings.raw('sliding_window')),
  )
  mlp = MLP(
    settings.need('intermediate_size'), settings.activation('hidden_act')
  )
  return settings.model(
    [Layer(attention, mlp)] * settings.need('num_hidden_layers'),
    tied=False,
    norm=Norm(settings.get('rms_norm_eps', 1e-5)),
  )


# The first releases of Phi-3 spelled longrope in these ways.
ALIASES = {'su': 'longrope', 'yarn': 'longrope'}

FAMILY = Family(config, ROWS)
