"""OLMo 2 (arXiv 2501.00656): norms after each half, q and k normed whole."""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED, POST_NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig

JOINT_NORMS = parse_table("""
  model.layers.{i}.self_attn.*   layers.{i}.attention.*
    q_norm.weight   N*H   query_norm.weight
    k_norm.weight   K*H   key_norm.weight
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an OLMo 2 config.json."""
  norm = settings.rms_norm(1e-5)
  attention = grouped(
    settings,
    bias=settings.get('attention_bias', False),
    qk_norm=norm,
    qk_norm_joint=True,
  )
  layer = Layer(attention, settings.mlp(), norms='post')
  layers = [layer] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=norm)


FAMILY = Family(config, ENDS + POST_NORMS + GROUPED + GATED + JOINT_NORMS)
