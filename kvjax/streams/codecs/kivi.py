"""Two bits: keys by channel over groups of tokens, values by token.

A few channels of keys are much larger than the others, in all tokens. A scale
for each channel and group of tokens fits them, and costs what a scale for each
token and group of channels does (KIVI, arXiv 2402.02750).
"""

import dataclasses

from kvjax.arguments import check_fields
from kvjax.streams.codecs.codec import (
  Codec,
  Tiering,
  Trailing,
  by_range,
  check_bits,
  code_leaves,
  pack_codes,
)
from kvjax.streams.codecs.integers import Affine
from kvjax.streams.stored import Stored


@dataclasses.dataclass(frozen=True)
class ByChannel(Codec):
  """Codes with a scale and a zero for each feature of a group of tokens.

  As `Affine`, with tokens and features changed round. It encodes whole groups,
  `[..., n * group, H]`.

  Attributes:
    bits: of a code: 2, 4 or 8.
    group: tokens that share a scale.
  """

  bits: int = 2
  group: int = 32

  def __post_init__(self):
    check_fields(self, at_least={'group': 1})
    check_bits(self)

  def tiering(self):
    return Tiering(tokens=self.group)

  def leaves(self, width, dtype):
    del dtype
    numbers = Trailing((width,), 'float16', ('width',), tokens=self.group)
    codes = code_leaves(self, self.bits, width)
    return codes | {'scale': numbers, 'zero': numbers}

  def encode(self, x, dtype):
    del dtype
    shape = x.shape[:-2] + (-1, self.group) + x.shape[-1:]
    codes, found = by_range(x.reshape(shape), self.bits, axis=-2)
    return pack_codes(codes.reshape(x.shape), self.bits) | found

  def stored(self, encoded):
    return Stored(**encoded, bits=self.bits)


@dataclasses.dataclass(frozen=True)
class KIVI(Codec):
  """Keys by channel over groups of tokens, values by token; the newest exact.

  The cache stores each layer in `Residual(kind, window=window, group=group)`:
  tokens are exact until a whole group of them has left the window. Keys, and
  latents, are `ByChannel(bits, group)` codes, and values `Affine(bits, group)`.

  Costs `H * bits / 8 + 4 * H / group` bytes a coded token and head of each
  stream, and `window + group` exact tokens a row.

  Attributes:
    bits: of a code: 2, 4 or 8.
    group: tokens that share a scale of keys, and features of values.
    window: newest tokens that are not encoded.
  """

  bits: int = 2
  group: int = 32
  window: int = 128

  def __post_init__(self):
    check_fields(self, at_least={'group': 1, 'window': 1})
    check_bits(self)

  def tiering(self):
    return Tiering(window=self.window, tokens=self.group)

  def of_stream(self, name):
    one = Affine if name == 'value' else ByChannel
    return one(self.bits, self.group)

  def leaves(self, width, dtype):
    return self.of_stream('key').leaves(width, dtype)

  def encode(self, x, dtype):
    return self.of_stream('key').encode(x, dtype)

  def stored(self, encoded):
    return self.of_stream('key').stored(encoded)
