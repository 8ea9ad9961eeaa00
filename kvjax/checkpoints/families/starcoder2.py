"""StarCoder2 (arXiv 2402.19173): LayerNorm, biases, a window in all layers."""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, GROUPED, NORMS
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.variants import grouped
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

PLAIN = parse_table("""
  model.layers.{i}.mlp.*   layers.{i}.mlp.*
    c_fc.weight     F D   up
    c_fc.bias       F     up_bias
    c_proj.weight   D F   down
    c_proj.bias     D     down_bias
""")


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a StarCoder2 config.json."""
  bias = settings.get('use_bias', True)
  attention = grouped(
    settings, kv_heads=2, bias=bias, window=settings.raw('sliding_window')
  )
  mlp = MLP(
    settings.need('intermediate_size'),
    settings.activation('hidden_act', default='gelu_pytorch_tanh'),
    gated=False,
    bias=bias,
  )
  return settings.model(
    [Layer(attention, mlp)] * settings.need('num_hidden_layers'),
    tied=True,
    norm=Norm(settings.get('norm_epsilon', 1e-5), centered=True, bias=True),
  )


FAMILY = Family(config, ENDS + NORMS + GROUPED + PLAIN)
