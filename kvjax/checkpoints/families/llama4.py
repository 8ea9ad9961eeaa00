"""Llama 4 (2025), text: chunks of attention, and layers without positions.

Layers with rotary positions attend within chunks, and normalise queries and
keys, without a weight, after the rotation. Layers without see all earlier
tokens, and scale queries by their position (arXiv 2501.19399). The sigmoid of
an expert's logit multiplies what the expert reads. Of a model with a vision
tower the decoder is read, and the tower left out.
"""

import dataclasses
from typing import Any

from kvjax.attention.grouped import Grouped
from kvjax.checkpoints.family import Family, rename_rows
from kvjax.checkpoints.hf_config import FULL, Settings
from kvjax.checkpoints.rope import rotary
from kvjax.checkpoints.shared_rows import ENDS, GATED, GROUPED, NORMS, SHARED
from kvjax.checkpoints.table import parse_table
from kvjax.checkpoints.text_part import (
  refuse_images,
  text_family,
  text_settings,
)
from kvjax.checkpoints.variants import grouped
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.experts import Experts
from kvjax.models.mlp import MLP
from kvjax.streams.scoring import Temperature

CHUNKED = 'chunked_attention'
HALF = 'model.layers.{i}.feed_forward.'
SPARSE = parse_table("""
  model.layers.{i}.feed_forward.*   layers.{i}.experts.*
    router.weight          experts D       router
    experts.gate_up_proj   experts D 2*F   gate     [:0:F] transpose
    experts.gate_up_proj   experts D 2*F   up       [:F:2*F] transpose
    experts.down_proj      experts F D     down     transpose
""")
# Published defaults of the decoder of a model with a vision tower.
SIZES = {
  'vocab_size': 202048,
  'hidden_size': 5120,
  'intermediate_size': 8192,
  'num_hidden_layers': 48,
  'num_attention_heads': 40,
}


def config(settings: Settings) -> ModelConfig:
  """Returns the config of a Llama 4 (text) config.json."""
  rotated = _rotated(settings)
  kinds = [CHUNKED if is_rotated else FULL for is_rotated in rotated]
  if settings.raw('attention_chunk_size', 0) is None:
    kinds = [FULL] * len(kinds)
  chunks = settings.spans(CHUNKED, kinds, 'attention_chunk_size', 8192)
  step = settings.get('interleave_moe_layer_step', 1)
  sparse = settings.get('moe_layers', range(step - 1, len(rotated), step))
  activation = settings.activation('hidden_act')
  dense = MLP(settings.get('intermediate_size_mlp', 16384), activation)
  layers = [
    Layer(
      _attention(settings, chunk, bool(is_rotated)),
      _experts(settings, activation) if i in sparse else dense,
    )
    for i, (chunk, is_rotated) in enumerate(zip(chunks, rotated, strict=True))
  ]
  norm = settings.rms_norm(1e-5)
  return settings.model(layers, tied=False, norm=norm, tempered=True)


def text_config(settings: Settings) -> ModelConfig:
  """Returns the config of the decoder of a Llama 4 with a vision tower."""
  text = Settings(SIZES | dict(text_settings(settings).values))
  return refuse_images(config(text), settings, {'image_token_index': 200092})


def _rotated(settings: Settings) -> list[int]:
  """Returns for each layer whether it has rotary positions, as 1 or 0."""
  every = settings.get('no_rope_layer_interval', 4)
  if settings.raw('no_rope_layers') == []:  # published: the default
    settings = Settings({**settings.values, 'no_rope_layers': None})
  return settings.per_layer('no_rope_layers', [1] * (every - 1) + [0])


def _attention(
  settings: Settings, chunk: int | None, is_rotated: bool
) -> Grouped:
  width = settings.get('head_dim', 128)
  special: dict[str, Any] = {'rotary': None}
  if is_rotated:
    special['rotary'] = rotary(settings, width, base=5e5, interleaved=True)
    if settings.get('use_qk_norm', True):
      norm = dataclasses.replace(settings.rms_norm(1e-5), weighted=False)
      special |= {'qk_norm': norm, 'qk_norm_after': True}
  elif settings.get('attn_temperature_tuning', True):
    weight = settings.get('attn_scale', 0.1)
    length = settings.get('floor_scale', 8192)
    special['temperature'] = Temperature(weight, length, shift=1)
  bias = settings.get('attention_bias', False)
  return grouped(
    settings, width=width, kv_heads=8, bias=bias, chunk=chunk, **special
  )


def _experts(settings: Settings, activation: str) -> Experts:
  hidden = settings.need('intermediate_size')
  return Experts(
    settings.get('num_local_experts', 16),
    settings.get('num_experts_per_tok', 1),
    hidden,
    activation,
    score='sigmoid',
    renormalize=False,
    shared=MLP(hidden, activation),
    scale_input=True,
  )


ROWS = ENDS + NORMS + GROUPED + SPARSE
ROWS += rename_rows(GATED, 'model.layers.{i}.mlp.', HALF)
ROWS += rename_rows(
  SHARED, 'model.layers.{i}.mlp.shared_experts.', HALF + 'shared_expert.'
)
FAMILIES = {
  'llama4': text_family(text_config, ROWS, 'llama4_text'),
  'llama4_text': Family(config, ROWS),
}
