"""One model with another attention in every layer, for the sake of its cache.

Heads, widths, windows and everything else stay. GQA keeps the model's own kv
heads where it has some, and else an eighth of its heads; MLA keeps the latent
of DeepSeek-V3, 512 features and a rotated key of 64, where it has none.
"""

import dataclasses
from typing import Any

from kvjax.attention.grouped import Grouped
from kvjax.attention.latent import Latent
from kvjax.attention.rotary import Rotary
from kvjax.models.config import ModelConfig

VARIANTS = ('mha', 'gqa', 'mqa', 'mla')
LATENT, ROTATED = 512, 64


def with_attention(config: ModelConfig, variant: str) -> ModelConfig:
  """Returns the config with the attention of every layer replaced.

  Args:
    config: of a model.
    variant: 'mha', 'gqa', 'mqa' or 'mla'.

  Raises:
    ValueError: no variant has that name.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f'variant={variant!r} is unknown; known: {", ".join(VARIANTS)}.'
    )
  layers = tuple(
    dataclasses.replace(layer, attention=_attention(layer.attention, variant))
    for layer in config.layers
  )
  return dataclasses.replace(config, layers=layers)


def _attention(own: Any, variant: str) -> Grouped | Latent:
  if variant == 'mla':
    return own if 'latent' in own.streams() else _latent(own)
  heads = own.num_heads
  kept = getattr(own, 'num_kv_heads', heads)
  if kept in (1, heads):
    kept = next(n for n in (heads // 8, heads // 4, 1) if n and not heads % n)
  wanted = {'mha': heads, 'gqa': kept, 'mqa': 1}[variant]
  if getattr(own, 'num_kv_heads', None) == wanted:
    return own
  return Grouped(
    heads,
    wanted,
    own.query_width // heads,
    own.value_width or own.key_width,
    rotary=own.rotary,
    visibility=own.visibility,
  )


def _latent(own: Grouped) -> Latent:
  return Latent(
    own.num_heads,
    LATENT,
    own.key_width,
    own.value_width or own.key_width,
    Rotary(ROTATED),
    visibility=own.visibility,
  )
