"""The interface of a codec, and what codecs of packed codes share."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from kvjax.streams.stored import Stored, pack

LARGEST_HALF = float(jnp.finfo(jnp.float16).max)


class Tiering(NamedTuple):
  """Tokens that a codec leaves exact, and groups that it encodes together.

  Attributes:
    first: tokens of a row that are never encoded.
    window: newest tokens that are not encoded.
    tokens: neighbouring tokens that are encoded together.
  """

  first: int = 0
  window: int = 0
  tokens: int = 1

  def count_codes(self, length: Any) -> Any:
    """Returns how many tokens of a row of `length` tokens are codes."""
    old = jnp.maximum(length - self.first - self.window, 0)
    return old // self.tokens * self.tokens

  def is_code(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns whether keys are codes once a query's own token is stored.

    Args:
      queries: int32 positions, that broadcast against those of keys.
      keys: int32 positions.
    """
    end = self.first + self.count_codes(queries + 1)
    return (keys >= self.first) & (keys < end)

  def is_exact(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns whether keys are exact once a query's own token is stored."""
    return ~self.is_code(queries, keys)


class Codec(Protocol):
  """Encodes `[..., H]` into a pytree of leaves `[..., *trailing]`.

  Each token of each head is encoded by itself, so groups never cross rows or
  tokens and old codes never change. A codec of groups of tokens says so by
  `tiering`, and encodes whole groups `[..., n * tokens, H]`: the cache keeps
  tokens exact until their group is due (`Residual`). Such tokens are stored by
  the codec `exact`, if this one has that attribute, and as they are if not;
  `encode` is given what is decoded of them.

  A codec may turn its streams. It then has two more methods: `turn(x)` returns
  float32 `[..., H]` as `encode` turns it and `decode` returns it, and
  `turn_back` undoes that. Queries are turned alike, so a turn must keep every
  product of two vectors.
  """

  def tiering(self) -> Tiering:
    """Returns which tokens must be exact, and the size of groups of tokens."""
    return Tiering()

  def of_stream(self, name: str) -> 'Codec':
    """Returns the codec of one of a layer's streams, where they differ."""
    del name
    return self

  def leaves(self, width: int, dtype: Any) -> Any:
    """Returns a pytree of `(trailing shape, dtype)` tuples as `Trailing`.

    Raises:
      ValueError: the codec cannot store streams of that width.
    """
    ...

  def encode(self, x: jax.Array, dtype: Any) -> Any:
    """Returns the pytree stored for `x [..., H]` in a cache of `dtype`."""
    ...

  def decode(self, encoded: Any) -> jax.Array:
    """Returns `[..., H]`; a codec that derives from this one has it."""
    stored = self.stored(encoded)
    if stored is None:
      raise NotImplementedError(f'{self} has neither `stored` nor `decode`.')
    return stored.decode()

  def stored(self, encoded: Any) -> Stored | None:
    """Returns a whole encoded stream as it is stored, without array work.

    None where `Stored` cannot say it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Trailing:
  """Shape and dtype of a stored leaf behind the axis of slots.

  Attributes:
    shape: behind that axis.
    dtype: of the leaf.
    axes: a name for each axis of the shape.
    tokens: neighbouring slots that share an entry.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str, ...]
  tokens: int = 1


def group_size(codec: Any, group: int, width: int) -> int:
  """Returns the features of a group in a stream of `width`: at most all.

  Raises:
    ValueError: groups do not divide the width.
  """
  group = min(group, width)
  if width % group:
    divisors = [n for n in range(1, width + 1) if not width % n]
    raise ValueError(
      f'{codec}: groups of {group} do not divide a stream of {width} features. '
      f'Give one of {", ".join(map(str, divisors))}.'
    )
  return group


def packed_bits(bits: int) -> int:
  """Returns the bits of a code that are packed; a plane has the highest else.

  Codes of 1, 2, 4 and 8 bits fill bytes, those of 3 and 5 do not.
  """
  return bits if bits in (1, 2, 4, 8) else bits - 1


def code_leaves(codec: Any, bits: int, width: int) -> dict[str, Trailing]:
  """Returns the leaves of packed codes, and of their plane.

  Raises:
    ValueError: the codes of a token are no whole number of bytes.
  """
  low = packed_bits(bits)
  parts = {'codes': low} if low == bits else {'codes': low, 'plane': 1}
  for size in parts.values():
    if width * size % 8:
      raise ValueError(
        f'{codec}: a byte has {8 // size} codes, and a stream of {width} '
        'features is no multiple of that. Store it by another codec: Int8().'
      )
  return {
    name: Trailing((width * size // 8,), jnp.uint8, ('width',))
    for name, size in parts.items()
  }


def pack_codes(
  codes: jax.Array, bits: int, run: int | None = None
) -> dict[str, jax.Array]:
  """Returns codes `[..., H]` as the leaves that `code_leaves` says.

  Args:
    codes: uint8.
    bits: of a code.
    run: see `Stored`; None for a head as one run.
  """
  low = packed_bits(bits)
  run = run or codes.shape[-1] * low // 8
  packed = {'codes': pack(codes & jnp.uint8(2**low - 1), low, run)}
  if low < bits:
    packed['plane'] = pack(codes >> low, 1, 1)
  return packed


def check_bits(codec: Any) -> None:
  """Raises ValueError unless the codes are of 2, 4 or 8 bits."""
  if codec.bits not in (2, 4, 8):
    name = type(codec).__name__
    raise ValueError(f'{name} bits={codec.bits!r} must be 2, 4 or 8.')


def by_range(
  x: jax.Array, bits: int, axis: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns uint8 codes between the least and the largest number of a group.

  And the groups' scale and zero in float16, with which the codes are made.

  Args:
    x: numbers.
    bits: of a code.
    axis: along which numbers are of one group.
  """
  x, most = x.astype(jnp.float32), 2**bits - 1
  low, high = x.min(axis=axis), x.max(axis=axis)
  scale, zero = half((high - low) / most), half(low)
  x -= jnp.expand_dims(zero.astype(jnp.float32), axis)
  codes = jnp.round(x / jnp.expand_dims(divisor(scale), axis))
  codes = jnp.clip(codes, 0, most).astype(jnp.uint8)
  return codes, {'scale': scale, 'zero': zero}


def by_group(x: jax.Array, size: int) -> jax.Array:
  """Returns float32 `[..., H / size, size]` of `x [..., H]`."""
  return x.astype(jnp.float32).reshape(x.shape[:-1] + (-1, size))


def half(x: jax.Array) -> jax.Array:
  """Returns float16; what it has no number for becomes its largest."""
  return jnp.clip(x, -LARGEST_HALF, LARGEST_HALF).astype(jnp.float16)


def divisor(scale: jax.Array) -> jax.Array:
  """Returns scales as float32, 1 for those that are 0."""
  scale = scale.astype(jnp.float32)
  return jnp.where(scale == 0, 1.0, scale)
