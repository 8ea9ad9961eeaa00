"""GLM-4-0414 (arXiv 2406.12793): four norms a layer, gate and up fused.

Half of a head is rotated, in interleaved pairs; biases on q, k and v only.
`post_attention_layernorm` is the norm before the MLP, as in Llama.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

FUSED = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    post_self_attn_layernorm.weight   D       attention_post_norm.weight
    post_mlp_layernorm.weight         D       mlp_post_norm.weight
    mlp.gate_up_proj.weight           2*F D   mlp.gate   [:F]
    mlp.gate_up_proj.weight           2*F D   mlp.up     [F:]
    mlp.down_proj.weight              D F     mlp.down
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a GLM-4-0414 config.json."""
  width = settings.head_width(128)
  attention = grouped(
    settings,
    width=width,
    kv_heads=2,
    rotary=rotary(settings, width, partial=0.5, interleaved=True),
    projection_bias=settings.get('attention_bias', True),
  )
  layers = [Layer(attention, settings.mlp(), norms='both')]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=False,
    norm=settings.rms_norm(1.5625e-7),
  )


FAMILY = Family(config, ENDS + NORMS + GROUPED + FUSED)
