"""Llama 1, 2, 3, 3.1, 3.2 (arXiv 2302.13971, 2407.21783) and SmolLM2.

GQA with rotary positions, RMSNorm and a gated MLP; llama3, linear, dynamic and
yarn scaling; biases and tied heads where config.json says so.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Llama config.json."""
  width = settings.head_width()
  bias = settings.get('attention_bias', False)
  layer = Layer(
    Grouped(
      settings.need('num_attention_heads'),
      settings.kv_heads(),
      width,
      rotary=rotary(settings, width),
      projection_bias=bias,
      output_bias=bias,
    ),
    MLP(
      settings.need('intermediate_size'),
      settings.activation('hidden_act'),
      bias=settings.get('mlp_bias', False),
    ),
  )
  return settings.model(
    [layer] * settings.need('num_hidden_layers'),
    tied=False,
    norm=Norm(settings.get('rms_norm_eps', 1e-6)),
  )


FAMILY = Family(config, LLAMA)
