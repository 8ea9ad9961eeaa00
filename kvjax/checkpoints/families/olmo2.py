"""OLMo 2 (arXiv 2501.00656): norms after each half, q and k normed whole."""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED, POST_NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

ROWS = (
  ENDS
  + POST_NORMS
  + GROUPED
  + GATED
  + parse_table(
    'model.layers.{i}.self_attn.',
    'layers.{i}.attention.',
    """
  q_norm.weight   N*H   query_norm.weight
  k_norm.weight   K*H   key_norm.weight
""",
  )
)


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an OLMo 2 config.json."""
  width = settings.head_width()
  bias = settings.get('attention_bias', False)
  norm = Norm(settings.get('rms_norm_eps', 1e-5))
  attention = Grouped(
    settings.need('num_attention_heads'),
    settings.kv_heads(),
    width,
    rotary=rotary(settings, width),
    projection_bias=bias,
    output_bias=bias,
    qk_norm=norm,
    qk_norm_joint=True,
  )
  mlp = MLP(
    settings.need('intermediate_size'), settings.activation('hidden_act')
  )
  layers = [Layer(attention, mlp, norms='post')]
  return settings.model(
    layers * settings.need('num_hidden_layers'), tied=False, norm=norm
  )


FAMILY = Family(config, ROWS)
