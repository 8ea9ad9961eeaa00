"""Rotary positions as config.json spells them, in the older and newer style.

Newer: `rope_parameters` holds type, base and scaling, flat or one dict a layer
type. Older: `rope_theta` beside `rope_scaling`, whose type is under `rope_type`
or `type`. Where both are there, `rope_scaling` wins, as it does in the
published implementations.
"""

import math
from collections.abc import Mapping
from typing import Any

from kvjax.attention.rotary import (
  Dynamic,
  Linear,
  Llama3,
  LongRope,
  Rotary,
  Scaling,
  Yarn,
  yarn_magnitude,
)
from kvjax.checkpoints.hf_config import Settings, check_values

SHARED = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
KNOWN = {
    'default': {'factor', 'attention_factor'},
    'linear': {'factor'},
    'dynamic': {'factor'},
    'llama3': {'factor', 'low_freq_factor', 'high_freq_factor'},
    'yarn': {
        'factor', 'attention_factor', 'beta_fast', 'beta_slow', 'mscale',
        'mscale_all_dim', 'truncate',
    },
    'longrope': {'factor', 'attention_factor', 'short_factor', 'long_factor'},
}  # fmt: skip


def rotary(
  settings: Settings,
  width: int,
  *,
  base: float = 10000.0,
  partial: float | None = None,
  interleaved: bool = False,
  layer_type: str | None = None,
  aliases: Mapping[str, str] | None = None,
) -> Rotary:
  """Returns the rotation of a head of `width` features.

  Args:
    settings: of the checkpoint.
    width: of a head, or of its rotated part.
    base: published default of `rope_theta`.
    partial: published default of `partial_rotary_factor`; None for a family
      that rotates all of `width` and has no such key.
    interleaved: pairs are neighbours.
    layer_type: key of a nested `rope_parameters`.
    aliases: further spellings of rope types, in this family.

  Raises:
    ValueError: an unknown rope type, or an unknown key of a known one.
  """
  found = dict(parameters(settings, layer_type))
  check_values(found)
  spelled = found.get('rope_type', found.get('type', 'default'))
  found['rope_type'] = (aliases or {}).get(spelled, spelled)
  key = 'partial_rotary_factor'
  share = found.get(key, settings.raw(key))
  if partial is not None:
    width = int(width * (partial if share is None else share))
  elif share not in (None, 1):
    raise ValueError(
      f'{key}={share} is not supported for model_type={settings.family!r}; '
      'supported: 1.0.'
    )
  theta = found.get('rope_theta')
  made = Rotary(
    width,
    base=float(settings.get('rope_theta', base) if theta is None else theta),
    interleaved=interleaved,
    scaling=_scaling(settings, found),
  )
  for length in (1, 1 << 30):  # tables that do not fit are refused here
    made.frequencies(length)
  return made


def parameters(
  settings: Settings, layer_type: str | None = None
) -> Mapping[str, Any]:
  """Returns the rope parameters that hold (for a layer type)."""
  found = settings.raw('rope_scaling') or settings.get('rope_parameters', {})
  nested = {k: v for k, v in found.items() if isinstance(v, Mapping)}
  if not nested:
    return found
  if layer_type not in nested:
    raise ValueError(
      f'rope parameters are given for {", ".join(sorted(nested))}; '
      f'model_type={settings.family!r} needs {layer_type or "one set"}.'
    )
  found = nested[layer_type]
  if found.get('truncate', True) is not True:
    raise ValueError(
      f'truncate={found["truncate"]} in the rope parameters of a layer type '
      'is not supported: published implementations do not read it there.'
    )
  return found


def rope_type(found: Mapping[str, Any]) -> str:
  """Returns the type of rope parameters; ValueError for one not supported."""
  name = found.get('rope_type', found.get('type', 'default'))
  if name not in KNOWN:
    raise ValueError(
      f'Unknown rope type {name!r}; supported: {", ".join(sorted(KNOWN))}.'
    )
  known = KNOWN[name] | SHARED | {'original_max_position_embeddings'}
  if strange := sorted(found.keys() - known):
    raise ValueError(
      f'Unknown key {strange[0]!r} of rope type {name!r}; supported: '
      f'{", ".join(sorted(known))}.'
    )
  return name


def score_scale(settings: Settings, width: int) -> float | None:
  """Returns DeepSeek's score scale where YaRN changes it (`mscale_all_dim`).

  `width ** -0.5 * (0.1 mscale_all_dim ln(factor) + 1) ** 2`, arXiv 2309.00071
  section 3.4 moved from cos and sin into the scale; None for the usual one.
  """
  found = parameters(settings)
  weight = found.get('mscale_all_dim')
  if rope_type(found) == 'default' or not weight:
    return None
  return width**-0.5 * yarn_magnitude(_factor(settings, found), weight) ** 2


def _scaling(settings: Settings, found: Mapping[str, Any]) -> Scaling | None:
  name = rope_type(found)
  if name == 'default':
    return None
  return MAKERS[name](settings, found)


def _number(found: Mapping[str, Any], key: str) -> float:
  if found.get(key) is None:
    raise ValueError(f'Rope type {rope_type(found)!r} needs {key!r}.')
  if found[key] <= 0:
    raise ValueError(f'{key}={found[key]} of rope parameters must be positive.')
  return float(found[key])


def _original(settings: Settings, found: Mapping[str, Any]) -> int:
  """The length of pretraining; a key beside the rope parameters wins."""
  key, longest = 'original_max_position_embeddings', 'max_position_embeddings'
  inner = found.get(key)
  return settings.get(key, settings.need(longest) if inner is None else inner)


def _factor(settings: Settings, found: Mapping[str, Any]) -> float:
  if found.get('factor') is not None:
    return _number(found, 'factor')
  longest = settings.need('max_position_embeddings')
  return longest / _original(settings, found)


def _linear(settings: Settings, found: Mapping[str, Any]) -> Linear:
  return Linear(_number(found, 'factor'))


def _dynamic(settings: Settings, found: Mapping[str, Any]) -> Dynamic:
  original = settings.need('max_position_embeddings')
  return Dynamic(_number(found, 'factor'), original)


def _llama3(settings: Settings, found: Mapping[str, Any]) -> Llama3:
  keys = 'factor', 'low_freq_factor', 'high_freq_factor'
  factor, low, high = (_number(found, key) for key in keys)
  return Llama3(factor, low, high, _original(settings, found))


def _yarn(settings: Settings, found: Mapping[str, Any]) -> Yarn:
  factor = _factor(settings, found)
  magnitude = found.get('attention_factor')
  over, under = found.get('mscale'), found.get('mscale_all_dim')
  if magnitude is None and over and under:
    magnitude = yarn_magnitude(factor, over) / yarn_magnitude(factor, under)
  return Yarn(
    factor,
    _original(settings, found),
    beta_fast=float(found.get('beta_fast') or 32),
    beta_slow=float(found.get('beta_slow') or 1),
    magnitude=magnitude,
    truncate=bool(found.get('truncate', True)),
  )


def _longrope(settings: Settings, found: Mapping[str, Any]) -> LongRope:
  original, factor = _original(settings, found), _factor(settings, found)
  magnitude = found.get('attention_factor')
  if magnitude is None:
    grown = math.log(factor) / math.log(original) if factor > 1 else 0.0
    magnitude = math.sqrt(1 + grown)
  for key in ('short_factor', 'long_factor'):
    if found.get(key) is None:
      raise ValueError(f"Rope type 'longrope' needs {key!r}.")
  return LongRope(
    short=tuple(map(float, found['short_factor'])),
    long=tuple(map(float, found['long_factor'])),
    original=original,
    magnitude=magnitude,
  )


MAKERS = {
  'linear': _linear,
  'dynamic': _dynamic,
  'llama3': _llama3,
  'yarn': _yarn,
  'longrope': _longrope,
}
