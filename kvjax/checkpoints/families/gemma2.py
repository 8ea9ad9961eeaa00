"""Gemma 2 (arXiv 2408.00118): four norms a layer, softcaps, every other window.

Scores are scaled by `query_pre_attn_scalar`, not by the width of a head.
"""

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, FOUR_NORMS, GATED, GROUPED
from kvjax.layers.norm import Norm
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP
from kvjax.streams.visibility import Visibility


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Gemma 2 config.json."""
  settings.refuse('use_bidirectional_attention')
  activation = settings.activation(
    'hidden_activation', default='gelu_pytorch_tanh'
  )
  mlp = MLP(settings.need('intermediate_size'), activation)
  kinds = ['sliding_attention', 'full_attention']
  count = settings.need('num_hidden_layers')
  layers = [
    Layer(_attention(settings, window), mlp, norms='both')
    for window in settings.windows((kinds * count)[:count], 4096)
  ]
  return settings.model(
    layers,
    tied=True,
    norm=Norm(settings.get('rms_norm_eps', 1e-6), offset=1.0),
    embedding_scale=settings.need('hidden_size') ** 0.5,
    logit_softcap=settings.raw('final_logit_softcapping', 30.0),
  )


def _attention(settings: Settings, window: int | None) -> Grouped:
  width = settings.get('head_dim', 256)
  bias = settings.get('attention_bias', False)
  return Grouped(
    settings.need('num_attention_heads'),
    settings.kv_heads(4),
    width,
    rotary=rotary(settings, width),
    visibility=Visibility(window=window),
    scale=settings.get('query_pre_attn_scalar', 256) ** -0.5,
    softcap=settings.raw('attn_logit_softcapping', 50.0),
    projection_bias=bias,
    output_bias=bias,
  )


FAMILY = Family(config, ENDS + FOUR_NORMS + GROUPED + GATED)
