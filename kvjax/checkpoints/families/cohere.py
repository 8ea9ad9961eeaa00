"""Cohere Command-R and R+ (2024): parallel block, logit scale.

LayerNorm without biases, rotary pairs interleaved; R+ normalises queries and
keys head by head, with another weight for each head.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig

LAYER_NORMS = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    input_layernorm.weight      D     attention_norm.weight
    self_attn.q_norm.weight     N H   attention.query_norm.weight
    self_attn.k_norm.weight     K H   attention.key_norm.weight
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Cohere config.json."""
  width = settings.head_width()
  norm = Norm(settings.get('layer_norm_eps', 1e-5), centered=True)
  attention = grouped(
    settings,
    rotary=rotary(settings, width, base=5e5, interleaved=True),
    bias=settings.get('attention_bias', False),
    qk_norm=norm if settings.get('use_qk_norm', False) else None,
    qk_norm_each=True,
  )
  layers = [Layer(attention, settings.mlp(), parallel='shared')]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=True,
    norm=norm,
    logit_scale=settings.get('logit_scale', 0.0625),
  )


FAMILY = Family(config, ENDS + GROUPED + GATED + LAYER_NORMS)
