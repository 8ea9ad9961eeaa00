"""A hash of params, computed on their device.

The hash is the sum over all elements, modulo 2^32, of a mixing of each
element's bits and its index (the finalizer of MurmurHash3, A. Appleby, 2011).
It differs after a change of a single element or of their order, and is the same
for every sharding. It guards against mistakes, not against forgery.
"""

from typing import Any

import jax
import jax.numpy as jnp

from kvjax.mesh.host import host
from kvjax.tree_paths import leaves_by_path

_SEEDS = (0x9E3779B1, 0x7F4A7C15)
_BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def fingerprint(params: Any) -> dict[str, str]:
  """Returns shape, dtype and 64 bits of each param, by its path."""
  leaves = leaves_by_path(params)
  sums = {path: _sums(x) for path, x in leaves.items()}
  sums = {path: host(x) for path, x in sums.items()}
  return {
    path: f'{x.dtype.name} {list(x.shape)} {sums[path].tobytes().hex()}'
    for path, x in leaves.items()
  }


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """Returns the sums uint32 `[2]` for two seeds."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
  bits = bits.astype(jnp.uint32)
  # The index of each element in row-major order, modulo 2^32.
  index = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index += steps * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  mixed = [_mix(bits + index * jnp.uint32(seed)) for seed in _SEEDS]
  return jnp.stack([jnp.sum(m, dtype=jnp.uint32) for m in mixed])


def _mix(x: jax.Array) -> jax.Array:
  """Returns MurmurHash3's finalizer of each element."""
  x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> jnp.uint32(16))
