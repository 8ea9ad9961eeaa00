"""Gemma 1 (arXiv 2403.08295): scaled embeddings, norm weights offset by one.

`hidden_act: gelu` of the first releases means the tanh approximation.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

TANH = 'gelu_pytorch_tanh'


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Gemma config.json."""
  settings.refuse('use_bidirectional_attention')
  attention = grouped(
    settings,
    width=settings.get('head_dim', 256),
    kv_heads=16,
    bias=settings.get('attention_bias', False),
  )
  mlp = MLP(settings.need('intermediate_size'), _activation(settings))
  return settings.model(
    [Layer(attention, mlp)] * settings.need('num_hidden_layers'),
    tied=True,
    norm=settings.rms_norm(1e-6, offset=1.0),
    embedding_scale=settings.need('hidden_size') ** 0.5,
  )


def _activation(settings: Settings) -> str:
  spelled = settings.get('hidden_activation', settings.get('hidden_act', TANH))
  name = settings.activation('hidden_activation', 'hidden_act', default=TANH)
  # Other spellings of the exact function (`gelu_python`) mean that function.
  return 'gelu_tanh' if spelled == 'gelu' else name


FAMILY = Family(config, LLAMA)
