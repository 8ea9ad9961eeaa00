"""A weight in eight bits, or in four: codes, and what makes numbers of them."""

import jax
from flax import struct

from kvjax.kernels.matmul import xla


@struct.dataclass
class CodedWeight:
  """Codes and scales, as `kvjax.quantize` makes them of a weight.

  Stands in a params pytree where the float weight stood; `linear` and `matmul`
  take either. In eight bits it is `codes * scale[..., None]`: the scale of an
  output channel multiplies the channel's sums, so that no product needs the
  weight itself. In four bits it is `code * scale + zero` of each 32 inputs,
  byte for byte the blocks of ggml's q4_1: byte i of a block has the codes of
  inputs i and i + 16.

  Attributes:
    codes: int8 `[..., out, in]`, or uint8 `[..., out, in / 2]`.
    scale: float32 `[..., out]`, or float16 `[..., out, in / 32]`.
    dtype: of the weight that it stands for, by name.
    zero: float16 `[..., out, in / 32]` of four bits; None for eight.
  """

  codes: jax.Array
  scale: jax.Array
  dtype: str = struct.field(pytree_node=False)
  zero: jax.Array | None = None

  @property
  def bits(self) -> int:
    """Of a code: 8 or 4."""
    return 8 if self.zero is None else 4

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the weight: `[..., out, in]`."""
    *lead, size = self.codes.shape
    return (*lead, size * 8 // self.bits)

  @property
  def nbytes(self) -> int:
    """Bytes of codes, scales and zeros."""
    zeros = 0 if self.zero is None else self.zero.nbytes
    return self.codes.nbytes + self.scale.nbytes + zeros

  def __getitem__(self, channels: jax.Array | slice) -> jax.Array:
    """Returns output channels `[..., in]` of a matrix, as wide as `dtype`."""
    if self.zero is not None:
      parts = self.codes, self.scale, self.zero
      return xla.decode_blocks(*(x[channels] for x in parts)).astype(self.dtype)
    wide = self.codes[channels].astype(self.scale.dtype)
    return (wide * self.scale[channels][..., None]).astype(self.dtype)
