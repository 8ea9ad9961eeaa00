"""The config.json with which a family reads back a given config.

Nothing is trusted: candidates are read by the family itself, and the one that
gives the config is written.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from kvjax import frozen_json
from kvjax.attention.rotary import Linear, Llama3, Rotary, Yarn
from kvjax.checkpoints.families import FAMILIES
from kvjax.checkpoints.hf_config import FULL, SLIDING, Settings
from kvjax.models.config import ModelConfig
from kvjax.models.mlp import MLP

NAMES = {'gelu_tanh': 'gelu_pytorch_tanh'}  # the other activations keep theirs
# Of a scaling's fields the keys; the other fields are named as their keys.
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
  if like is not None and 'text_config' in like or family == 'gemma3':
    raise ValueError(
      f'like={family!r} has parts that kvjax leaves out, so a whole checkpoint '
      "of it cannot be written. Give like='gemma3_text', or leave it out."
    )
  errors = []
  for values in [like] if like is not None else _candidates(config, family):
    values = {
      key: value
      for key, value in values.items()
      if key not in ('quantization_config', 'dtype')
    }
    values |= {'model_type': family, 'torch_dtype': config.dtype}
    try:
      found = FAMILIES[family].config(Settings(values))
    except ValueError as error:
      errors.append(str(error))
      continue
    if FAMILIES[family].head is not None:  # the tensors say it
      found = dataclasses.replace(found, tied=config.tied)
    old, new = frozen_json.encode(config), frozen_json.encode(found)
    error = frozen_json.difference(old, new)
    if found == config or error is None:
      return values
    errors.append(error)
  raise ValueError(
    f'like={family!r} has no config.json known here for this model: '
    f'{errors[0]}, where the values left of "not" are those of the model. Give '
    'like= a checkpoint directory whose model has the same config, or leave it '
    "out: kvjax's own layout takes every model."
  )


def _candidates(config: ModelConfig, family: str) -> Iterator[dict[str, Any]]:
  values = _decoder(config) | _layers(config) | _mlps(config)
  windows = [x.attention.visibility.window for x in config.layers]
  kinds = [FULL if window is None else SLIDING for window in windows]
  yield values | {'layer_types': kinds}
  yield values  # a family refuses the key, or reads it otherwise


def _decoder(config: ModelConfig) -> dict[str, Any]:
  """Returns what config.json says of the whole model, in every spelling."""
  count = len(config.layers)
  values = {
    'vocab_size': config.vocab_size,
    'hidden_size': config.width,
    'n_embd': config.width,
    'num_hidden_layers': count,
    'n_layer': count,
    'tie_word_embeddings': config.tied,
    'rms_norm_eps': config.norm.eps,
    'layer_norm_eps': config.norm.eps,
    'layer_norm_epsilon': config.norm.eps,
    'logit_scale': config.logit_scale,
    'final_logit_softcapping': config.logit_softcap,
  }
  return values | (
    {'n_positions': config.positions} if config.positions else {}
  )


def _layers(config: ModelConfig) -> dict[str, Any]:
  """Returns what config.json says of attention; layers differ in window."""
  attentions: list[Any] = [layer.attention for layer in config.layers]
  first = attentions[0]
  windows = [x.visibility.window for x in attentions]
  window = next((x for x in windows if x is not None), None)
  wide = [x for x, w in zip(attentions, windows, strict=True) if w is None]
  local = [x for x in attentions if x not in wide]
  values = {
    'num_attention_heads': first.num_heads,
    'n_head': first.num_heads,
    'num_key_value_heads': getattr(first, 'num_kv_heads', first.num_heads),
    'multi_query': getattr(first, 'num_kv_heads', first.num_heads) == 1,
    'head_dim': first.key_width,
    'attention_bias': first.output_bias,
    'use_qk_norm': getattr(first, 'qk_norm', None) is not None,
    'sliding_window': window,
    'use_sliding_window': window is not None,
    'no_rope_layers': [int(x.rotary is not None) for x in attentions],
  }
  if first.scale is not None:
    size = first.scale**-2
    values['query_pre_attn_scalar'] = round(size) if size >= 1 else size
  values['attn_logit_softcapping'] = getattr(first, 'softcap', None)
  rotated = [x.rotary for x in wide + local if x.rotary is not None]
  if rotated:
    values |= _rotary(rotated[0], first.key_width)
  if local and local[0].rotary is not None:
    values['rope_local_base_freq'] = local[0].rotary.base
  return values


def _rotary(rotary: Rotary, width: int) -> dict[str, Any]:
  values: dict[str, Any] = {'rope_theta': rotary.base}
  if rotary.width != width:
    values['partial_rotary_factor'] = rotary.width / width
  if isinstance(rotary.scaling, Linear | Llama3 | Yarn):
    rope: dict[str, Any] = {'rope_type': type(rotary.scaling).__name__.lower()}
    for field in dataclasses.fields(rotary.scaling):
      value = getattr(rotary.scaling, field.name)
      if field.init and value is not None:
        rope[SCALING_KEYS.get(field.name, field.name)] = value
    values['rope_scaling'] = rope
  return values


def _mlps(config: ModelConfig) -> dict[str, Any]:
  """Returns what config.json says of MLPs and experts."""
  mlps: list[Any] = [layer.mlp for layer in config.layers]
  dense = [i for i, mlp in enumerate(mlps) if isinstance(mlp, MLP)]
  sparse = [mlp for mlp in mlps if not isinstance(mlp, MLP)]
  mlp = mlps[dense[0]] if dense else sparse[0]
  name = NAMES.get(mlp.activation, mlp.activation)
  values = {
    'intermediate_size': mlp.hidden,
    'n_inner': mlp.hidden,
    'hidden_act': name,
    'hidden_activation': name,
    'activation_function': name,
    'mlp_bias': mlp.bias,
  }
  if sparse:
    values |= {
      'num_experts': sparse[0].num_experts,
      'num_local_experts': sparse[0].num_experts,
      'num_experts_per_tok': sparse[0].top,
      'moe_intermediate_size': sparse[0].hidden,
      'norm_topk_prob': sparse[0].renormalize,
      'mlp_only_layers': dense,
      'swiglu_limit': sparse[0].clamp,
    }
  return values
