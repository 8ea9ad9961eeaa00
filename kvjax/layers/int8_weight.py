"""A weight in eight bits: integer codes, and one float32 scale a line."""

import jax
from flax import struct


@struct.dataclass
class CodedWeight:
  """`codes * scale[..., None]`, as `kvjax.quantize` makes it of a weight.

  Stands in a params pytree where the float weight stood; `linear` and `matmul`
  take either. The scale of a line is taken out of its sums, so no product
  needs the weight itself.

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

  def __getitem__(self, lines: jax.Array) -> jax.Array:
    """Returns lines `[..., in]` of a two-dimensional weight, in its dtype."""
    wide = self.codes[lines].astype(self.scale.dtype)
    return (wide * self.scale[lines][..., None]).astype(self.dtype)
