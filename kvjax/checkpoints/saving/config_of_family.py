"""The config.json with which a family reads back a given config.

Nothing is trusted: candidates are read by the family itself, and the one that
gives the config is written. Candidates have the keys of every family.
"""

import dataclasses
from typing import Any

from kvjax import frozen_json
from kvjax.attention.rotary import Rotary
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.models.config import ModelConfig
from kvjax.models.mlp import MLP

# A part of a model, its field, and the keys that families have for the field.
KEYS = """
  model       vocab_size      vocab_size
  model       width           hidden_size n_embd
  model       tied            tie_word_embeddings
  model       logit_scale     logit_scale
  model       logit_softcap   final_logit_softcapping
  norm        eps             rms_norm_eps layer_norm_eps layer_norm_epsilon
  norm        eps             norm_epsilon norm_eps
  attention   num_heads       num_attention_heads n_head
  attention   num_kv_heads    num_key_value_heads
  attention   key_width       head_dim
  attention   output_bias     attention_bias
  attention   projection_bias use_qkv_bias
  attention   softcap         attn_logit_softcapping
  attention   clip            clip_qkv
  mlp         hidden          intermediate_size n_inner
  mlp         activation      hidden_act hidden_activation activation_function
  mlp         bias            mlp_bias use_bias
  experts     num_experts     num_experts num_local_experts
  experts     top             num_experts_per_tok
  experts     hidden          moe_intermediate_size
  experts     renormalize     norm_topk_prob
  experts     clamp           swiglu_limit
"""
# Values that families spell in another way.
SPELLING: dict[Any, str] = {'gelu_tanh': 'gelu_pytorch_tanh'}
# Keys for the base of a rotation, and for the share of a head that is rotated.
BASES = 'rope_theta', 'rotary_emb_base'
SHARES = 'partial_rotary_factor', 'rotary_pct'
# Of a scaling; its other fields are named as their keys.
SCALING_KEYS = {
  'low': 'low_freq_factor',
  'high': 'high_freq_factor',
  'original': 'original_max_position_embeddings',
  'magnitude': 'attention_factor',
}


def family_values(
  config: ModelConfig, family: str, like: dict[str, Any] | None
) -> dict[str, Any]:
  """Returns the values of a config.json of a family.

  Args:
    config: that the values must give.
    family: its `model_type`.
    like: values of a checkpoint whose model has the same config; None to make
      them of the config.

  Raises:
    ValueError: no values are known with which the family reads this config;
      the message says what differs.
  """
  if (text := FAMILIES[family].text) is not None:
    raise ValueError(
      f'like={family!r} has parts that kvjax leaves out, so a whole checkpoint '
      f'of it cannot be written. Give like={text!r}, or leave it out.'
    )
  errors = []
  for candidate in _candidates(config) if like is None else [like]:
    values = candidate | {'model_type': family, 'torch_dtype': config.dtype}
    for key in ('quantization_config', 'dtype'):
      values.pop(key, None)
    try:
      found = FAMILIES[family].config(Settings(values))
    except ValueError as error:
      errors.append(str(error))
      continue
    if FAMILIES[family].head is not None:  # the tensors say it
      found = dataclasses.replace(found, tied=config.tied)
    error = frozen_json.difference(
      frozen_json.encode(config), frozen_json.encode(found)
    )
    if error is None:
      return values
    errors.append(error)
  raise ValueError(
    f'like={family!r} has no config.json known here for this model: '
    f'{errors[0]}, where the values left of "not" are those of the model. Give '
    'like= a checkpoint directory whose model has the same config, or leave it '
    "out: kvjax's own layout takes every model."
  )


def _candidates(config: ModelConfig) -> list[dict[str, Any]]:
  """Returns values to try; layers differ in window, rotation and experts."""
  attentions: list[Any] = [layer.attention for layer in config.layers]
  first = attentions[0]
  windows = [x.visibility.window for x in attentions]
  has_qk_norm = getattr(first, 'qk_norm', None) is not None
  values = _spell_parts(config) | {
    'num_hidden_layers': len(windows),
    'n_layer': len(windows),
    'sliding_window': next(filter(None, windows), None),
    'use_sliding_window': any(windows),
    'no_rope_layers': [int(x.rotary is not None) for x in attentions],
    'multi_query': getattr(first, 'num_kv_heads', None) == 1,
    'use_qk_norm': has_qk_norm,
    'qk_layernorm': has_qk_norm,
    'use_parallel_residual': config.layers[0].parallel is not None,
  }
  if config.positions:
    values['n_positions'] = config.positions
  if first.scale is not None:
    size = first.scale**-2
    values['query_pre_attn_scalar'] = round(size) if size >= 1 else size
  # Layers with a window may rotate by another base, and come last here.
  rotated = [x for x in attentions if x.rotary is not None]
  rotated.sort(key=lambda x: x.visibility.window is not None)
  if rotated:
    values |= _rotary(rotated[0].rotary, first.key_width)
    if rotated[-1].visibility.window is not None:
      values['rope_local_base_freq'] = rotated[-1].rotary.base
  kinds = [FULL if window is None else SLIDING for window in windows]
  # A family refuses layer_types, or reads them otherwise.
  return [values | {'layer_types': kinds}, values]


def _spell_parts(config: ModelConfig) -> dict[str, Any]:
  """Returns the values that `KEYS` gives to the first part of each name."""
  mlps = [layer.mlp for layer in config.layers]
  dense = [i for i, mlp in enumerate(mlps) if isinstance(mlp, MLP)]
  sparse = [mlp for mlp in mlps if not isinstance(mlp, MLP)]
  parts = {
    'model': config,
    'norm': config.norm,
    'attention': config.layers[0].attention,
    'mlp': mlps[dense[0]] if dense else sparse[0],
  }
  values: dict[str, Any] = {}
  if sparse:
    parts['experts'] = sparse[0]
    values['mlp_only_layers'] = dense
  for line in KEYS.strip().splitlines():
    part, field, *keys = line.split()
    if part in parts:
      value = getattr(parts[part], field, None)
      values |= dict.fromkeys(keys, SPELLING.get(value, value))
  return values


def _rotary(rotary: Rotary, width: int) -> dict[str, Any]:
  values: dict[str, Any] = dict.fromkeys(BASES, rotary.base)
  if rotary.width != width:
    values |= dict.fromkeys(SHARES, rotary.width / width)
  if rotary.scaling is not None:
    fields = frozen_json.encode(rotary.scaling)
    kind = fields.pop(frozen_json.TYPE).lower()
    values['rope_scaling'] = {'rope_type': kind} | {
      SCALING_KEYS.get(field, field): value
      for field, value in fields.items()
      if value is not None
    }
  return values
