"""MiniCPM3 (arXiv 2404.06395): MLA with scaled embeddings, residuals, logits.

Residuals by `scale_depth / sqrt(layers)`, logits by `dim_model_base / width`;
rotary halves, not interleaved; longrope in the published checkpoint.
"""

import math

from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import ENDS, GATED, LATENT, NORMS
from kvjax.checkpoints.variants import latent
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a MiniCPM3 config.json."""
  width = settings.need('hidden_size')
  count = settings.need('num_hidden_layers')
  heads = settings.need('num_attention_heads')
  value_width = settings.raw('v_head_dim')
  if value_width is None:
    value_width = settings.divide('hidden_size', width, heads)
  settings = Settings({**settings.values, 'v_head_dim': value_width})
  mlp = settings.mlp(bias=settings.get('mlp_bias', False))
  layer = Layer(latent(settings, False, query_rank=768), mlp)
  depth = settings.raw('scale_depth', 1.4)
  base = settings.raw('dim_model_base', 256)
  return settings.model(
    [layer] * count,
    tied=True,
    norm=settings.rms_norm(1e-5),
    embedding_scale=float(settings.get('scale_emb', 12)),
    residual_scale=1.0 if depth is None else depth / math.sqrt(count),
    logit_scale=1.0 if base is None else base / width,
  )


FAMILY = Family(config, ENDS + NORMS + LATENT + GATED)
