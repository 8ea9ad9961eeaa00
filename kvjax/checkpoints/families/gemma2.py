"""Gemma 2 (arXiv 2408.00118): four norms a layer, softcaps, every other window.

Scores are scaled by `query_pre_attn_scalar`, not by the width of a head.
"""

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.checkpoints.shared_rows import ENDS, FOUR_NORMS, GATED, GROUPED
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.mlp import MLP

TANH = 'gelu_pytorch_tanh'


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Gemma 2 config.json."""
  settings.refuse('use_bidirectional_attention')
  activation = settings.activation('hidden_activation', default=TANH)
  mlp = MLP(settings.need('intermediate_size'), activation)
  layers = [
    Layer(
      grouped(
        settings,
        width=settings.get('head_dim', 256),
        kv_heads=4,
        bias=settings.get('attention_bias', False),
        window=window,
        scale=settings.get('query_pre_attn_scalar', 256) ** -0.5,
        softcap=settings.raw('attn_logit_softcapping', 50.0),
      ),
      mlp,
      norms='both',
    )
    for window in settings.windows([SLIDING, FULL], 4096)
  ]
  return settings.model(
    layers,
    tied=True,
    norm=settings.rms_norm(1e-6, offset=1.0),
    embedding_scale=settings.need('hidden_size') ** 0.5,
    logit_softcap=settings.raw('final_logit_softcapping', 30.0),
  )


FAMILY = Family(config, ENDS + FOUR_NORMS + GROUPED + GATED)
