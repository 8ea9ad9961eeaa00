"""Additive position biases: functions of two positions, one a head."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class PositionBias:
  """A bias ready to add: `table [N]` slopes or `[buckets, N]` with a rule.

  Called with query and key positions that broadcast to `[B, K | 1, T, S]`, it
  returns `[B, K, G, T, S]`.
  """

  rule: 'Alibi | RelativeBias' = struct.field(pytree_node=False)
  table: jax.Array

  def __call__(
    self, queries: jax.Array, keys: jax.Array, num_kv_heads: int
  ) -> jax.Array:
    bias = self.rule.bias(self.table, queries, keys)  # [B, K|1, T, S, N]
    bias = bias.reshape(bias.shape[:4] + (num_kv_heads, -1))
    if bias.shape[1] == 1:
      return jnp.moveaxis(bias[:, 0], (3, 4), (1, 2))
    return jnp.stack(
      [jnp.moveaxis(bias[:, k, :, :, k], -1, 1) for k in range(num_kv_heads)],
      axis=1,
    )


@dataclasses.dataclass(frozen=True)
class Alibi:
  """`slope_n (key - query)` (Press et al. 2021, arXiv 2108.12409).

  Attributes:
    scale: multiplies the slopes (Falcon scales scores and bias together).
    rounded: Falcon's published arithmetic: slopes, key positions and their
      products in bfloat16. It counts from position 0, which a softmax cannot
      tell from counting back from the query.
  """

  scale: float = 1.0
  rounded: bool = False

  def table(self, num_heads: int, learned: jax.Array | None) -> jax.Array:
    """Returns slopes `[N]`; heads beyond a power of two interleave."""
    del learned
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = _geometric(power, power)
    rest = _geometric(2 * power, 2 * (num_heads - power))[::2]
    slopes = np.concatenate([slopes, rest])[:num_heads]
    if self.rounded:
      return _bfloat16(jnp.asarray(slopes, jnp.float32))
    return jnp.asarray(self.scale * slopes, jnp.float32)

  def bias(
    self, table: jax.Array, queries: jax.Array, keys: jax.Array
  ) -> jax.Array:
    slopes = table[None, None, None, None, :]
    if not self.rounded:
      return (keys - queries).astype(jnp.float32)[..., None] * slopes
    shape = jnp.broadcast_shapes(queries.shape, keys.shape)
    keys = _bfloat16(jnp.broadcast_to(keys, shape).astype(jnp.float32))
    return self.scale * _bfloat16(keys[..., None] * slopes)


def _bfloat16(x: jax.Array) -> jax.Array:
  # Not a pair of casts: XLA may drop those, as excess precision.
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _geometric(heads: int, count: int) -> np.ndarray:
  return 2.0 ** (-8.0 / heads * np.arange(1, count + 1))


@dataclasses.dataclass(frozen=True)
class RelativeBias:
  """T5's learned bias by bucketed distance (arXiv 1910.10683, section 2.1).

  Attributes:
    buckets: rows of the table `[buckets, N]`.
    max_distance: distances from here on share the last bucket.
    bidirectional: half of the buckets are for later keys (encoders).
  """

  buckets: int = 32
  max_distance: int = 128
  bidirectional: bool = False

  def table(self, num_heads: int, learned: jax.Array | None) -> jax.Array:
    """Returns the learned table `[buckets, N]`, a parameter of the stack."""
    if learned is None or learned.shape != (self.buckets, num_heads):
      raise ValueError(
        f'A relative bias needs a table [{self.buckets}, {num_heads}], not '
        f'{None if learned is None else list(learned.shape)}.'
      )
    return learned

  def bias(
    self, table: jax.Array, queries: jax.Array, keys: jax.Array
  ) -> jax.Array:
    return table.astype(jnp.float32)[self.bucket(keys - queries)]

  def bucket(self, distance: jax.Array) -> jax.Array:
    """Returns the bucket of `key - query`: exact near, logarithmic far."""
    buckets, base = self.buckets, jnp.zeros_like(distance)
    if self.bidirectional:
      buckets //= 2
      base = jnp.where(distance > 0, buckets, 0)
      past = jnp.abs(distance)
    else:
      past = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(past, 1).astype(jnp.float32) / exact)
    ratio = ratio / math.log(self.max_distance / exact) * (buckets - exact)
    far = jnp.minimum(exact + ratio.astype(jnp.int32), buckets - 1)
    return base + jnp.where(past < exact, past, far)
