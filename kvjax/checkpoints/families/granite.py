"""Granite 3 (arXiv 2408.13359): Llama with four multipliers.

Embeddings, scores and what a layer adds are multiplied; logits are divided.
"""

from typing import Any

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family
from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.shared_rows import LLAMA
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Granite config.json."""
  mlp = settings.mlp(bias=settings.get('mlp_bias', False))
  layers = [Layer(attention(settings), mlp)]
  return settings.model(
    layers * settings.need('num_hidden_layers'),
    tied=False,
    norm=settings.rms_norm(1e-6),
    **multipliers(settings),
  )


def attention(settings: Settings) -> Grouped:
  """Returns attention whose scores `attention_multiplier` scales."""
  return grouped(
    settings,
    bias=settings.get('attention_bias', False),
    scale=float(settings.get('attention_multiplier', 1.0)),
  )


def multipliers(settings: Settings) -> dict[str, Any]:
  """Returns the fields of a `ModelConfig` that scale its parts."""
  return {
    'embedding_scale': float(settings.get('embedding_multiplier', 1.0)),
    'residual_scale': float(settings.get('residual_multiplier', 1.0)),
    'logit_scale': 1 / settings.get('logits_scaling', 1.0),
  }


FAMILY = Family(config, LLAMA)
