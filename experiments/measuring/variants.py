"""A model with another attention in every layer, to compare their caches.

Heads, widths, windows and everything else stay. GQA has as many kv heads as the
model, if the model is GQA, and else an eighth of its heads. MLA has the latent
of the model, if there is one, and else that of DeepSeek-V3: 512 features and a
rotated key of 64.
"""

import dataclasses
from typing import Any

import kvjax
from experiments.training.variants import VARIANTS as VARIANTS
from experiments.training.variants import check_variant

LATENT = 512
ROTATED = 64


def with_attention(
  config: kvjax.ModelConfig, variant: str
) -> kvjax.ModelConfig:
  """Returns the config with the attention of every layer replaced.

  Args:
    config: of a model.
    variant: 'mha', 'gqa', 'mqa' or 'mla'.

  Raises:
    ValueError: no variant has that name.
  """
  check_variant(variant)
  layers = tuple(
    dataclasses.replace(layer, attention=_attention(layer.attention, variant))
    for layer in config.layers
  )
  return dataclasses.replace(config, layers=layers)


def _attention(old: Any, variant: str) -> kvjax.Grouped | kvjax.Latent:
  heads = old.num_heads
  shared: dict[str, Any] = {
    'value_width': old.value_width or old.key_width,
    'visibility': old.visibility,
  }
  if variant == 'mla':
    if 'latent' in old.streams():
      return old
    rotary = kvjax.Rotary(ROTATED)
    return kvjax.Latent(heads, LATENT, old.key_width, rotary=rotary, **shared)
  kv_heads = getattr(old, 'num_kv_heads', heads)
  if kv_heads in (1, heads):
    shares = (heads // 8, heads // 4, 1)
    kv_heads = next(n for n in shares if n and not heads % n)
  wanted = {'mha': heads, 'gqa': kv_heads, 'mqa': 1}[variant]
  if getattr(old, 'num_kv_heads', None) == wanted:
    return old
  width = old.query_width // heads
  return kvjax.Grouped(heads, wanted, width, rotary=old.rotary, **shared)
