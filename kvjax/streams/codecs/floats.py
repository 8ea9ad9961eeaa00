"""Streams as floats: those of the cache, or eight bits."""

import dataclasses

import jax
import jax.numpy as jnp

from kvjax.streams.codecs.codec import Codec, Trailing
from kvjax.streams.stored import Stored


@dataclasses.dataclass(frozen=True)
class Plain(Codec):
  """Stores the stream as it is, cast to the dtype of the cache."""

  def leaves(self, width, dtype):
    return Trailing((width,), dtype, ('width',))

  def encode(self, x, dtype):
    return (
      saturate(x, dtype) if jnp.dtype(dtype).itemsize == 1 else x.astype(dtype)
    )

  def stored(self, encoded):
    return Stored(encoded)


@dataclasses.dataclass(frozen=True)
class Float8(Codec):
  """Eight-bit floats, e4m3: 3 bits of fraction, at most 448 (arXiv 2209.05433).

  Numbers beyond 448 are stored as 448. Costs `H` bytes a token and head, and
  no scale: it suits streams whose numbers are neither large nor tiny.
  """

  def leaves(self, width, dtype):
    del dtype
    return Trailing((width,), jnp.uint8, ('width',))

  def encode(self, x, dtype):
    del dtype
    narrow = saturate(x, jnp.float8_e4m3fn)
    return jax.lax.bitcast_convert_type(narrow, jnp.uint8)

  def stored(self, encoded):
    return Stored(encoded, dtype='float8_e4m3fn')


def saturate(x: jax.Array, dtype) -> jax.Array:
  """Returns `x` in a narrow type, its largest number for all beyond it."""
  most = float(jnp.finfo(dtype).max)  # beyond it a cast gives NaN
  return jnp.clip(x, -most, most).astype(dtype)
