"""Apertus (arXiv 2509.14233): an ungated MLP with xIELU, head norms.

The two learned numbers of xIELU are tensors of each layer, as are its two
constants.
"""

from kvjax.checkpoints.family import Constant, Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import replace_rope, rope_parameters
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED, HEAD_NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP, XIELU

ROWS = parse_table("""
  model.layers.{i}.*   layers.{i}.*
    attention_layernorm.weight     D   attention_norm.weight
    feedforward_layernorm.weight   D   mlp_norm.weight
    mlp.act_fn.alpha_p             1   mlp.rise
    mlp.act_fn.alpha_n             1   mlp.fall
""")
# The published rope parameters, where config.json has none.
ROPE = {
  'rope_type': 'llama3',
  'rope_theta': 12e6,
  'factor': 8.0,
  'original_max_position_embeddings': 8192,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of an Apertus config.json."""
  settings.refuse('mlp_bias')
  settings.only('post_norm', False)
  settings.only('qk_norm', True)
  norm = settings.rms_norm(1e-5)
  if settings.get('hidden_act', XIELU) == XIELU:
    activation = XIELU
  else:
    activation = settings.activation('hidden_act')
  attention = grouped(
    replace_rope(settings, rope_parameters(settings) or ROPE),
    bias=settings.get('attention_bias', False),
    qk_norm=norm,
  )
  mlp = MLP(settings.need('intermediate_size'), activation, gated=False)
  layers = [Layer(attention, mlp)] * settings.need('num_hidden_layers')
  return settings.model(layers, tied=False, norm=norm)


ACT = 'model.layers.{i}.mlp.act_fn.'
FAMILY = Family(
  config,
  ENDS + GROUPED + HEAD_NORMS + GATED + ROWS,
  constants=(
    Constant(f'{ACT}beta', 0.5, 'layers.{i}.mlp.rise'),
    Constant(f'{ACT}eps', -1e-6, 'layers.{i}.mlp.rise'),
  ),
)
