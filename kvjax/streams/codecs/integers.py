"""Integers with a scale: a head in eight bits, or groups in two to eight."""

import dataclasses

import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.streams.codecs.codec import (
  Codec,
  Trailing,
  by_group,
  by_range,
  check_bits,
  code_leaves,
  divisor,
  group_size,
  half,
  pack_codes,
)
from kvjax.streams.stored import Stored


@dataclasses.dataclass(frozen=True)
class Int8(Codec):
  """Eight-bit codes with one float32 scale a token and head.

  `x ~ codes * scale`, `scale = max |x| / 127`: every element is within half a
  scale. Costs `H + 4` bytes a token and head.
  """

  def leaves(self, width, dtype):
    del dtype
    return {
      'codes': Trailing((width,), jnp.int8, ('width',)),
      'scale': Trailing((), jnp.float32, ()),
    }

  def encode(self, x, dtype):
    del dtype
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=-1) / 127
    scale = jnp.where(scale == 0, 1.0, scale)
    codes = jnp.round(x / scale[..., None])
    return {'codes': codes.astype(jnp.int8), 'scale': scale}

  def stored(self, encoded):
    return Stored(encoded['codes'], encoded['scale'])


@dataclasses.dataclass(frozen=True)
class Affine(Codec):
  """Codes of few bits with a scale, and a zero, a group of features.

  `x ~ code * scale + zero` with `zero = min x` and
  `scale = (max x - min x) / (2 ** bits - 1)` of a token's group, both in
  float16. Codes are made with the rounded two, so an element is off by half a
  scale and the rounding of the zero at most. Without a zero,
  `x ~ (code - 2 ** (bits - 1)) * scale` and
  `scale = max |x| / (2 ** (bits - 1) - 1)`.

  Costs `H * bits / 8 + 4 * H / group` bytes a token and head; 2 for 4 without a
  zero.

  Attributes:
    bits: of a code: 2, 4 or 8.
    group: features that share a scale. All of them, where a stream has fewer.
    zero: whether a group has its smallest number stored.
  """

  bits: int = 4
  group: int = 32
  zero: bool = True

  def __post_init__(self):
    check_fields(self, at_least={'group': 1})
    check_bits(self)

  def leaves(self, width, dtype):
    del dtype
    groups = width // group_size(self, self.group, width)
    numbers = Trailing((groups,), jnp.float16, ('groups',))
    found = code_leaves(self, self.bits, width) | {'scale': numbers}
    return found | ({'zero': numbers} if self.zero else {})

  def encode(self, x, dtype):
    del dtype
    groups = by_group(x, group_size(self, self.group, x.shape[-1]))
    if self.zero:
      codes, found = by_range(groups, self.bits, axis=-1)
    else:
      most = 2**self.bits - 1
      found = {'scale': half(jnp.abs(groups).max(axis=-1) / (most // 2))}
      codes = jnp.round(groups / divisor(found['scale'])[..., None])
      codes = jnp.clip(codes + self._offset, 0, most).astype(jnp.uint8)
    return pack_codes(codes.reshape(x.shape), self.bits) | found

  def stored(self, encoded):
    return Stored(**encoded, bits=self.bits, offset=self._offset)

  @property
  def _offset(self) -> int:
    return 0 if self.zero else 2 ** (self.bits - 1)
