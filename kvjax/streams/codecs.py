"""How a stream is stored: encode once, decode block by block, never rewrite."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kvjax.streams.view import Stored


class Codec(Protocol):
  """Encodes `[..., H]` into a pytree of leaves `[..., *trailing]`.

  Each token of each head is encoded by itself, so groups never cross rows or
  tokens and old codes never change.
  """

  def leaves(self, width: int, dtype: Any) -> Any:
    """Returns a pytree of `(trailing shape, dtype)` tuples as `Trailing`."""
    ...

  def encode(self, x: jax.Array, dtype: Any) -> Any:
    """Returns the pytree stored for `x [..., H]` in a cache of `dtype`."""
    ...

  def decode(self, encoded: Any) -> jax.Array:
    """Returns `[..., H]`."""
    ...

  def stored(self, encoded: Any) -> Stored | None:
    """Returns a whole encoded stream as it is stored, without array work.

    None where it is no product of codes and one scale a token and head.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Trailing:
  """Shape and dtype of a stored leaf behind the axis of slots."""

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plain:
  """Stores the stream as it is, cast to the dtype of the cache."""

  def leaves(self, width, dtype):
    return Trailing((width,), dtype, ('width',))

  def encode(self, x, dtype):
    if jnp.dtype(dtype).itemsize == 1:
      most = float(jnp.finfo(dtype).max)  # beyond it a cast gives NaN
      x = jnp.clip(x, -most, most)
    return x.astype(dtype)

  def decode(self, encoded):
    narrow = encoded.dtype.itemsize == 1  # queries are not cut to eight bits
    return encoded.astype(jnp.bfloat16) if narrow else encoded

  def stored(self, encoded):
    return Stored(encoded) if encoded.dtype.itemsize > 1 else None


@dataclasses.dataclass(frozen=True)
class Int8:
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

  def decode(self, encoded):
    codes, scale = encoded['codes'], encoded['scale']
    return codes.astype(jnp.float32) * scale[..., None]

  def stored(self, encoded):
    return Stored(encoded['codes'], encoded['scale'])
