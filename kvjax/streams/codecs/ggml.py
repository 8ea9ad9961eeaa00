"""The blocks in which llama.cpp stores keys and values.

Codes are those of `ggml-quants.c` (`quantize_row_*_ref`), to the byte: 32
features share a scale, byte i of a block has the codes of features i and
i + 16, and a fifth bit has a plane of its own.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kvjax.streams.codecs.codec import (
  Codec,
  Trailing,
  by_group,
  code_leaves,
  divisor,
  half,
  pack_codes,
)
from kvjax.streams.stored import Stored

BLOCK = 32  # features that share a scale


class BlockType(NamedTuple):
  """How a type of block stores numbers.

  Attributes:
    bits: of a code.
    has_minimum: codes count from the smallest number, which is stored as well;
      others count from the middle of the range.
  """

  bits: int
  has_minimum: bool = False

  @property
  def middle(self) -> int:
    return 0 if self.has_minimum else 2 ** (self.bits - 1)


TYPES = {
  'q8_0': BlockType(8),
  'q4_0': BlockType(4),
  'q4_1': BlockType(4, has_minimum=True),
  'q5_0': BlockType(5),
}


@dataclasses.dataclass(frozen=True)
class GGML(Codec):
  """Blocks of 32 features as llama.cpp stores them, byte for byte.

  The scale is float16. Codes are made with the float32 scale, as there, and
  rounded half away from zero. For 4 and 5 bits without a minimum the number of
  largest size decides the scale and its sign, so it is stored almost exactly.

  Costs 34 bytes a block (q8_0), 18 (q4_0), 20 (q4_1) or 22 (q5_0).

  Attributes:
    name: 'q8_0', 'q4_0', 'q4_1' or 'q5_0'.
  """

  name: str

  def __post_init__(self):
    if self.name not in TYPES:
      raise ValueError(
        f'GGML name={self.name!r} must be one of {", ".join(TYPES)}.'
      )

  @property
  def block(self) -> BlockType:
    return TYPES[self.name]

  def leaves(self, width, dtype):
    del dtype
    if width % BLOCK:
      raise ValueError(
        f'{self}: blocks of {BLOCK} do not divide a stream of {width} '
        'features. Affine(group=...) has groups of any size.'
      )
    scale = Trailing((width // BLOCK,), jnp.float16, ('groups',))
    if self.block.bits == 8:
      return {'codes': Trailing((width,), jnp.int8, ('width',)), 'scale': scale}
    found = code_leaves(self, self.block.bits, width) | {'scale': scale}
    return found | ({'zero': scale} if self.block.has_minimum else {})

  def encode(self, x, dtype):
    del dtype
    blocks = by_group(x, BLOCK)
    if self.block.bits == 8:
      scale = _divide(jnp.abs(blocks).max(axis=-1), 127)
      codes = _round_half_away(blocks * _inverse(scale)).astype(jnp.int8)
      return {'codes': codes.reshape(x.shape), 'scale': half(scale)}
    most, middle = 2**self.block.bits - 1, self.block.middle
    zero = {}
    if self.block.has_minimum:
      low = blocks.min(axis=-1)
      scale = _divide(blocks.max(axis=-1) - low, most)
      blocks, zero = blocks - low[..., None], {'zero': half(low)}
    else:
      scale = _largest(blocks) / -middle
    # Clipped before the sum, not after: XLA:CPU would round product and sum as
    # one, and llama.cpp rounds both.
    steps = jnp.clip(blocks * _inverse(scale), -middle, most - middle)
    codes = jnp.trunc(steps + (middle + 0.5)).astype(jnp.uint8)
    codes = pack_codes(codes.reshape(x.shape), self.block.bits, BLOCK // 2)
    return codes | {'scale': half(scale)} | zero

  def stored(self, encoded):
    if self.block.bits == 8:
      return Stored(**encoded)
    bits, middle = self.block.bits, self.block.middle
    return Stored(**encoded, bits=bits, run=BLOCK // 2, offset=middle)


def _largest(blocks: jax.Array) -> jax.Array:
  """Returns the number of largest size in each block, with its sign."""
  index = jnp.abs(blocks).argmax(axis=-1, keepdims=True)
  return jnp.take_along_axis(blocks, index, axis=-1)[..., 0]


def _divide(x: jax.Array, number: int) -> jax.Array:
  """Returns the quotient, rounded once."""
  # XLA would multiply by the inverse of a constant, which is rounded as well.
  return x / jax.lax.optimization_barrier(jnp.full_like(x, number))


def _inverse(scale: jax.Array) -> jax.Array:
  """Returns `1 / scale` as `[..., 1]`, 0 for scales of 0."""
  return jnp.where(scale == 0, 0.0, 1 / divisor(scale))[..., None]


def _round_half_away(x: jax.Array) -> jax.Array:
  return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)
