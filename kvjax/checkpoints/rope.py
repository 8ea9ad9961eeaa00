"""Rotary positions as config.json spells them, in the older and newer style.

Newer: `rope_parameters` has type, base and scaling, flat or in a dict for each
layer type. Older: `rope_theta` next to `rope_scaling`, whose type is under
`rope_type` or `type`. Where both are there, `rope_scaling` wins, as it does in
the published implementations.
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

# Of each rope type the keys that it may have, SHARED keys apart.
KNOWN = {
  'default': 'factor attention_factor',
  'linear': 'factor',
  'dynamic': 'factor',
  'llama3': 'factor low_freq_factor high_freq_factor',
  'yarn': 'factor attention_factor beta_fast beta_slow mscale mscale_all_dim '
  'truncate',
  'longrope': 'factor attention_factor short_factor long_factor',
}
ORIGINAL = 'original_max_position_embeddings'
SHARE = 'partial_rotary_factor'
SHARED = {'rope_type', 'type', 'rope_theta', SHARE, ORIGINAL}

Rope = Mapping[str, Any]  # the rope parameters of a config.json


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
    partial: published default of `partial_rotary_factor`, where null means the
      whole; None for a family that rotates all of `width` and has no such key.
    interleaved: pairs are neighbours.
    layer_type: that this rotation is of, in a family with a set of rope
      parameters for each; their key in a nested `rope_parameters`.
    aliases: further spellings of rope types, in this family.

  Raises:
    ValueError: an unknown rope type, or an unknown key of a known type.
  """
  rope = dict(rope_parameters(settings, layer_type))
  check_values(rope)
  spelled = rope.get('rope_type', rope.get('type', 'default'))
  rope['rope_type'] = (aliases or {}).get(spelled, spelled)
  theta = rope.get('rope_theta')
  return Rotary(
    _rotated_width(settings, rope, width, partial),
    base=float(settings.get('rope_theta', base) if theta is None else theta),
    interleaved=interleaved,
    scaling=_scaling(settings, rope),
  )


def rope_parameters(settings: Settings, layer_type: str | None = None) -> Rope:
  """Returns the rope parameters of the model, or of a layer type.

  Raises:
    ValueError: they are nested otherwise than the family reads them.
  """
  rope = settings.raw('rope_scaling') or settings.get('rope_parameters', {})
  nested = {k: v for k, v in rope.items() if isinstance(v, Mapping)}
  if nested and layer_type not in nested:
    raise ValueError(
      f'rope parameters are given for {", ".join(sorted(nested))}; '
      f'model_type={settings.family!r} needs {layer_type or "one set"}.'
    )
  rope = nested[layer_type] if nested else rope
  if layer_type is not None and rope.get('truncate', True) is not True:
    raise ValueError(
      f'truncate={rope["truncate"]} in the rope parameters of a layer type '
      'is not supported: published implementations do not read it there.'
    )
  return rope


def has_nested_rope(settings: Settings) -> bool:
  """Returns whether each layer type has its own rope parameters.

  Raises:
    ValueError: some of them are for no layer type.
  """
  nested = settings.get('rope_parameters', {})
  older = settings.get('rope_scaling', {})
  loose = [key for key, x in nested.items() if not isinstance(x, Mapping)]
  if older and (nested or any(isinstance(x, Mapping) for x in older.values())):
    loose.append('rope_scaling')
  if loose:
    raise ValueError(
      f'{loose[0]} next to or inside the rope_parameters of model_type='
      f'{settings.family!r} holds for no layer type: give full_attention and '
      'sliding_attention a set each.'
    )
  return bool(nested)


def replace_rope(settings: Settings, rope: Rope) -> Settings:
  """Returns settings with other rope parameters, in the newer style."""
  return Settings(
    dict(settings.values) | {'rope_scaling': None, 'rope_parameters': rope}
  )


def rope_type(rope: Rope) -> str:
  """Returns the type of rope parameters.

  Raises:
    ValueError: the type, or a key of it, is unknown.
  """
  name = rope.get('rope_type', rope.get('type', 'default'))
  if name not in KNOWN:
    raise ValueError(
      f'Unknown rope type {name!r}; supported: {", ".join(sorted(KNOWN))}.'
    )
  known = SHARED | set(KNOWN[name].split())
  if unknown := sorted(rope.keys() - known):
    raise ValueError(
      f'Unknown key {unknown[0]!r} of rope type {name!r}; supported: '
      f'{", ".join(sorted(known))}.'
    )
  return name


def original_length(settings: Settings, rope: Rope) -> int:
  """Returns the length of pretraining.

  The key of config.json wins over the key of its rope parameters.
  """
  inner = rope.get(ORIGINAL)
  if inner is None:
    inner = settings.need('max_position_embeddings')
  length = settings.get(ORIGINAL, inner)
  if length < 2:  # longrope divides by its logarithm
    raise ValueError(
      f'{ORIGINAL} (or max_position_embeddings, where that key is absent) is '
      f'{length}; rope type {rope_type(rope)!r} needs at least 2.'
    )
  return length


def score_scale(settings: Settings, width: int) -> float | None:
  """Returns DeepSeek's score scale where YaRN changes it (`mscale_all_dim`).

  `width ** -0.5 * (0.1 mscale_all_dim ln(factor) + 1) ** 2`, arXiv 2309.00071
  section 3.4 moved from cos and sin into the scale; None for the usual scale.
  """
  rope = rope_parameters(settings)
  weight = rope.get('mscale_all_dim')
  if rope_type(rope) == 'default' or not weight:
    return None
  return width**-0.5 * yarn_magnitude(_factor(settings, rope), weight) ** 2


def _rotated_width(
  settings: Settings, rope: Rope, width: int, partial: float | None
) -> int:
  """Returns the features of a head that are rotated."""
  share = rope.get(SHARE, settings.raw(SHARE, partial))
  if partial is not None:
    return int(width * (1 if share is None else share))
  if share not in (None, 1):
    raise ValueError(
      f'{SHARE}={share} is not supported for model_type={settings.family!r}; '
      'supported: 1.0.'
    )
  return width


def _scaling(settings: Settings, rope: Rope) -> Scaling | None:
  match rope_type(rope):
    case 'linear':
      return Linear(float(_need(rope, 'factor')))
    case 'dynamic':
      original = settings.need('max_position_embeddings')
      return Dynamic(float(_need(rope, 'factor')), original)
    case 'llama3':
      return Llama3(
        float(_need(rope, 'factor')),
        float(_need(rope, 'low_freq_factor')),
        float(_need(rope, 'high_freq_factor')),
        original_length(settings, rope),
      )
    case 'yarn':
      return _yarn(settings, rope)
    case 'longrope':
      return _longrope(settings, rope)
  return None


def _need(rope: Rope, key: str) -> Any:
  if rope.get(key) is None:
    raise ValueError(f'Rope type {rope_type(rope)!r} needs {key!r}.')
  return rope[key]


def _factor(settings: Settings, rope: Rope) -> float:
  if rope.get('factor') is not None:
    return float(rope['factor'])
  longest = settings.need('max_position_embeddings')
  return longest / original_length(settings, rope)


def _yarn(settings: Settings, rope: Rope) -> Yarn:
  factor = _factor(settings, rope)
  magnitude = rope.get('attention_factor')
  numerator = rope.get('mscale')
  denominator = rope.get('mscale_all_dim')
  if magnitude is None and numerator and denominator:
    magnitude = yarn_magnitude(factor, numerator)
    magnitude /= yarn_magnitude(factor, denominator)
  return Yarn(
    factor,
    original_length(settings, rope),
    beta_fast=float(rope.get('beta_fast') or 32),
    beta_slow=float(rope.get('beta_slow') or 1),
    magnitude=magnitude,
    truncate=bool(rope.get('truncate', True)),
  )


def _longrope(settings: Settings, rope: Rope) -> LongRope:
  original = original_length(settings, rope)
  factor = _factor(settings, rope)
  magnitude = rope.get('attention_factor')
  if magnitude is None:
    growth = math.log(factor) / math.log(original) if factor > 1 else 0.0
    magnitude = math.sqrt(1 + growth)
  return LongRope(
    short=tuple(map(float, _need(rope, 'short_factor'))),
    long=tuple(map(float, _need(rope, 'long_factor'))),
    original=original,
    magnitude=magnitude,
  )
