"""Gemma 1 (arXiv 2403.08295): scaled embeddings, norm weights offset by one.

`hidden_act: gelu` of the first releases means the tanh approximation.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

TANH = 'gelu_pytorch_tanh'


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Gemma config.json."""
  settings.refuse('use_bidirectional_attention')
  width = settings.get('head_dim', 256)
  bias = settings.get('attention_bias', False)
  layer = Layer(
    Grouped(
      settings.need('num_attention_heads'),
      settings.kv_heads(16),
      width,
      rotary=rotary(settings, width),
      projection_bias=bias,
      output_bias=bias,
    ),
    MLP(settings.need('intermediate_size'), _activation(settings)),
  )
  return settings.model(
    [layer] * settings.need('num_hidden_layers'),
    tied=True,
    norm=Norm(settings.get('rms_norm_eps', 1e-6), offset=1.0),
    embedding_scale=settings.need('hidden_size') ** 0.5,
  )


def _activation(settings: Settings) -> str:
  spelled = settings.get('hidden_activation', settings.get('hidden_act', TANH))
  name = settings.activation('hidden_activation', 'hidden_act', default=TANH)
  # Other spellings of the exact function (`gelu_python`) mean that function.
  return 'gelu_tanh' if spelled == 'gelu' else name


FAMILY = Family(config, LLAMA)
