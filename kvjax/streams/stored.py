"""How a whole stream is stored: codes, and what makes numbers of them.

One form serves every codec. Sizes of groups follow from shapes, so a kernel or
a count of bytes needs no codec to understand a store.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Stored:
  """A whole stream as it is stored: `(level - offset) * scale + zero`.

  A pool has `[K, pages, page, ...]` in the place of `[B, K, S, ...]`, where the
  view has a table.

  Attributes:
    codes: `[B, K, S, H]`, floats or integers; packed, uint8
      `[B, K, S, H * bits / 8]` of the low bits.
    scale: `[B, K, S]`, or `[B, K, S / s, H / h]` for groups of s tokens and h
      features; None for 1.
    zero: of the same groups; None for 0.
    plane: uint8 `[B, K, S, H / 8]`, the highest bit of each code where the
      other bits are packed: bit i of byte j is that of feature 8 j + i.
    bits: of a packed code; None where each element of `codes` is one.
    run: features whose codes are neighbours. Byte i of a run has the codes of
      features i, i + run, ..., the lowest bits first. None for all bytes of a
      head as one run.
    offset: a code is this much larger than its level.
    levels: the level of each code; None for the code itself.
    dtype: the type whose bits the codes are; None for their own. XLA copies a
      store of eight-bit floats to write into it, and one of bytes never.
  """

  codes: jax.Array
  scale: jax.Array | None = None
  zero: jax.Array | None = None
  plane: jax.Array | None = None
  bits: int | None = struct.field(pytree_node=False, default=None)
  run: int | None = struct.field(pytree_node=False, default=None)
  offset: int = struct.field(pytree_node=False, default=0)
  levels: tuple[float, ...] | None = struct.field(
    pytree_node=False, default=None
  )
  dtype: str | None = struct.field(pytree_node=False, default=None)

  @property
  def in_place_type(self) -> str:
    """Type of the codes where kernels may read them in place; '' elsewhere.

    Such are floats, and int8 with one float32 scale a token and head. The CPU
    library reads `has_groups_of_features`, too; all else is decoded block by
    block.
    """
    rest = self.zero, self.plane, self.bits, self.levels, self.dtype
    if any(x is not None for x in rest) or self.offset:
      return ''
    if self.scale is not None:
      by_token = self.scale.ndim == self.codes.ndim - 1
      types = self.codes.dtype, self.scale.dtype
      if not by_token or types != (jnp.int8, jnp.float32):
        return ''
    return self.codes.dtype.name

  @property
  def has_groups_of_features(self) -> bool:
    """Whether it is int8 or packed codes with float16 numbers of groups.

    Of groups of features of one token: the CPU library reads them in place.
    """
    rest = self.plane, self.levels, self.dtype
    if any(x is not None for x in rest) or self.scale is None:
      return False
    code = jnp.int8 if self.bits is None else jnp.uint8
    return self.codes.dtype == code and all(
      x.dtype == jnp.float16 and x.shape[:-1] == self.codes.shape[:-1]
      for x in (self.scale, self.zero)
      if x is not None
    )

  @property
  def width(self) -> int:
    """Elements of a token and head."""
    bits = (self.bits or 8) - (self.plane is not None)
    return self.codes.shape[-1] * 8 // bits

  def decode(self) -> jax.Array:
    """Returns the stream `[B, K, S, H]`."""
    codes = self._unpacked()
    if self.scale is None:
      narrow = codes.dtype.itemsize == 1  # queries are not cut to eight bits
      return codes.astype(jnp.bfloat16) if narrow else codes
    if self.levels is None:
      numbers = codes.astype(jnp.float32)
      numbers = numbers - self.offset if self.offset else numbers
    else:
      levels = jnp.asarray(self.levels, jnp.float32)
      numbers = levels.at[codes].get(mode='promise_in_bounds')
    numbers = numbers * _by_element(self.scale, numbers.shape)
    if self.zero is None:
      return numbers
    return numbers + _by_element(self.zero, numbers.shape)

  def _unpacked(self) -> jax.Array:
    """Returns a code an element."""
    codes = self.codes
    if self.bits is not None:
      low = self.bits if self.plane is None else self.bits - 1
      codes = unpack(codes, low, self.run or codes.shape[-1])
      if self.plane is not None:
        codes |= unpack(self.plane, 1, 1) << low
    if self.dtype is None:
      return codes
    narrow = jax.lax.bitcast_convert_type(codes, jnp.dtype(self.dtype))
    return narrow.astype(jnp.float32)


def _by_element(numbers: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns float32 numbers of groups that broadcast against `shape`."""
  numbers = numbers.astype(jnp.float32)
  if numbers.ndim < len(shape):
    numbers = numbers[..., None]
  for axis in range(-min(2, len(shape)), 0):
    groups, size = numbers.shape[axis], shape[axis]
    if groups not in (1, size):
      numbers = jnp.repeat(numbers, size // groups, axis=axis)
  return numbers


def pack(codes: jax.Array, bits: int, run: int) -> jax.Array:
  """Returns codes `[..., W]` of 1, 2, 4 or 8 bits as `[..., W * bits / 8]`.

  Args:
    codes: integers below `2 ** bits`.
    bits: of a code.
    run: neighbouring bytes; see `Stored`.
  """
  lead, count = codes.shape[:-1], 8 // bits
  codes = codes.astype(jnp.uint8).reshape(lead + (-1, count, run))
  packed = (codes << _shifts(codes.shape, bits)).sum(axis=-2, dtype=jnp.uint8)
  return packed.reshape(lead + (-1,))


def unpack(packed: jax.Array, bits: int, run: int) -> jax.Array:
  """Returns the uint8 codes `[..., W]` that `pack` put into bytes."""
  lead, count = packed.shape[:-1], 8 // bits
  runs = packed.reshape(lead + (-1, 1, run))
  shape = runs.shape[:-2] + (count, run)
  codes = jnp.broadcast_to(runs, shape) >> _shifts(shape, bits)
  return (codes & jnp.uint8(2**bits - 1)).reshape(lead + (-1,))


def _shifts(shape: tuple[int, ...], bits: int) -> jax.Array:
  """Returns uint8 bits to shift by, of parts along the last axis but one."""
  part = jax.lax.broadcasted_iota(jnp.uint8, shape, len(shape) - 2)
  return part * jnp.uint8(bits)
