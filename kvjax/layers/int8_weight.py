"""A weight in eight bits: codes, and a float32 scale an output channel."""

import jax
from flax import struct


@struct.dataclass
class CodedWeight:
  """`codes * scale[..., None]`, as `kvjax.quantize` makes it of a weight.

  Stands in a params pytree where the float weight stood; `linear` and `matmul`
  take either. The scale of an output channel multiplies the channel's sums, so
  that no product needs the weight itself.

  Attributes:
    codes: int8 `[..., out, in]`.
    scale: float32 `[..., out]`.
    dtype: of the weight that it stands for, by name.
  """

  codes: jax.Array
  scale: jax.Array
  dtype: str = struct.field(pytree_node=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the weight: `[..., out, in]`."""
    return self.codes.shape

  @property
  def nbytes(self) -> int:
    """Bytes of codes and scales."""
    return self.codes.nbytes + self.scale.nbytes

  def __getitem__(self, channels: jax.Array | slice) -> jax.Array:
    """Returns output channels `[..., in]` of a matrix, as wide as `dtype`."""
    wide = self.codes[channels].astype(self.scale.dtype)
    return (wide * self.scale[channels][..., None]).astype(self.dtype)
