"""Phi-3 and Phi-4 (arXiv 2404.14219): fused projections and longrope.

`qkv_proj` has the rows of all queries, keys and values in that order, and
`gate_up_proj` has the rows of gate and up. longrope has two tables; the planned
length chooses between them: give it as `rotary_length`.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

FUSED = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    self_attn.qkv_proj.weight   (N+K+K)*H D   attention.query   [:N*H]
    self_attn.qkv_proj.weight   (N+K+K)*H D   attention.key     [N*H:(N+K)*H]
    self_attn.qkv_proj.weight   (N+K+K)*H D   attention.value   [(N+K)*H:]
    self_attn.o_proj.weight     D N*H         attention.output
    mlp.gate_up_proj.weight     2*F D         mlp.gate          [:F]
    mlp.gate_up_proj.weight     2*F D         mlp.up            [F:]
    mlp.down_proj.weight        D F           mlp.down
""")
# The first releases of Phi-3 spelled longrope in these ways.
ALIASES = {'su': 'longrope', 'yarn': 'longrope'}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Phi-3 config.json."""
  width = settings.head_width()
  attention = grouped(
    settings,
    rotary=rotary(settings, width, partial=1.0, aliases=ALIASES),
    window=settings.raw('sliding_window'),
  )
  layers = [Layer(attention, settings.mlp())] * settings.need(
    'num_hidden_layers'
  )
  return settings.model(layers, tied=False, norm=settings.rms_norm(1e-5))


FAMILY = Family(config, ENDS + NORMS + FUSED)
