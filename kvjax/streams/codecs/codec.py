"""The interface of a codec, and what codecs of packed codes share."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kvjax.streams.stored import Stored, pack

LARGEST_HALF = float(jnp.finfo(jnp.float16).max)


class Codec(Protocol):
  """Encodes `[..., H]` into a pytree of leaves `[..., *trailing]`.

  Each token of each head is encoded by itself, so groups never cross rows or
  tokens and old codes never change.

  A codec may turn its streams. It then has two more methods: `turn(x)` returns
  float32 `[..., H]` as `encode` turns it and `decode` returns it, and
  `turn_back` undoes that. Queries are turned alike, so a turn must keep every
  product of two vectors.
  """

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
  """Shape and dtype of a stored leaf behind the axis of slots."""

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str, ...]


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
