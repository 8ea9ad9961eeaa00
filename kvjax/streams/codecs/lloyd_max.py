"""Levels that suit a normal distribution, in the place of equal steps.

Lloyd (1982) and Max (1960) place the levels of a quantizer where the expected
squared error is least: each is the mean of the numbers nearest to it. A turned
stream is close to normal (TurboQuant, arXiv 2504.19874).
"""

import dataclasses
import itertools

import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.streams.codecs.codec import (
  Codec,
  Trailing,
  code_leaves,
  divisor,
  half,
  pack_codes,
  packed_bits,
)
from kvjax.streams.stored import Stored

# The positive levels of N(0, 1) by bits; the negative ones mirror them.
POSITIVE = {
  1: (0.79788456,),
  2: (0.45278003, 1.51041761),
  3: (0.24509418, 0.75600528, 1.34390928, 2.1519457),
  4: (
    *(0.12839503, 0.3880483, 0.65675912, 0.94234046),
    *(1.2562312, 1.61804639, 2.06901723, 2.73258957),
  ),
}


@dataclasses.dataclass(frozen=True)
class LloydMax(Codec):
  """The level nearest to each number, of a head divided by its norm.

  `x ~ level[code] * norm / sqrt(H)`, with the norm of a token and head in
  float16 and the `2 ** bits` levels of least squared error for N(0, 1). The
  squared error of normal numbers is 0.363, 0.1175, 0.0345 and 0.0095 of their
  square at 1 to 4 bits. Keys are far from normal: take
  `Hadamard(LloydMax(bits))`, which is TurboQuant without its second stage.

  Costs `H * bits / 8 + 2` bytes a token and head.

  Attributes:
    bits: of a code: 1 to 4. The third bit of three has a plane of its own.
  """

  bits: int = 4

  def __post_init__(self):
    check_fields(self, at_least={'bits': 1})
    if self.bits not in POSITIVE:
      raise ValueError(f'LloydMax bits={self.bits!r} must be 1, 2, 3 or 4.')

  @property
  def levels(self) -> tuple[float, ...]:
    """The levels, the lowest first."""
    positive = POSITIVE[self.bits]
    return tuple(-x for x in reversed(positive)) + positive

  def leaves(self, width, dtype):
    del dtype
    scale = Trailing((1,), jnp.float16, ('groups',))
    return code_leaves(self, self.bits, width) | {'scale': scale}

  def encode(self, x, dtype):
    del dtype
    x = x.astype(jnp.float32)
    norm = half(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)))
    x = x * x.shape[-1] ** 0.5 / divisor(norm)
    codes = jnp.zeros(x.shape, jnp.uint8)
    for low, high in itertools.pairwise(self.levels):
      codes += (x > (low + high) / 2).astype(jnp.uint8)
    return pack_codes(codes, self.bits) | {'scale': norm}

  def stored(self, encoded):
    width = encoded['codes'].shape[-1] * 8 // packed_bits(self.bits)
    levels = tuple(x / width**0.5 for x in self.levels)
    return Stored(**encoded, bits=self.bits, levels=levels)
