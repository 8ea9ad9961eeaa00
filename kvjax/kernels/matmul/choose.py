"""Which product multiplies activations by a weight: the one place that decides.

Every product takes rows `[M, in]` and a weight `[out, in]`, whose rows are
output channels: the order of published checkpoints, and the one in which a CPU
reads a weight fastest. Sums are float32. A weight in eight bits is its codes
and a scale for each output channel, which multiplies the sums; one in four bits
has a scale and a zero for each block of 32 inputs.
"""

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.kernels.matmul import cpu_library, gpu_row, xla


def multiply(
  rows: jax.Array,
  weight: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32.

  Args:
    rows: of any floating dtype.
    weight: floats, int8 codes, or uint8 `[out, in / 2]` of two codes a byte.
    scale: float32 `[out]`, multiplies the sums; float16 `[out, in / 32]` of
      packed codes; None for none.
    zero: float16 `[out, in / 32]` of packed codes.
  """
  if cpu_library.refuses(rows, weight):
    return multiply_plainly(rows, weight, scale, zero)
  return cpu_library.multiply(rows, weight, scale, zero, multiply_plainly)


def multiply_plainly(
  rows: jax.Array,
  weight: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None = None,
) -> jax.Array:
  """Returns what `multiply` does, by plain JAX alone."""
  if zero is not None:
    sums = jax.lax.platform_dependent(
      rows,
      weight,
      scale,
      zero,
      cpu=xla.channel_sums_by_blocks,
      default=xla.channel_sums,
    )
    return xla.transpose(sums, scaled=True)
  single_row = rows.shape[0] == 1
  if single_row and target() == 'gpu':
    return gpu_row.multiply(rows, weight, scale)
  if single_row and rows.dtype != jnp.float32:
    # XLA:CPU writes a float32 copy of the whole weight for a product of one
    # narrow row. Two rows go to a kernel that widens the weight as it reads.
    rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
    return _multiply_rows(rows, weight, scale)[:1]
  return _multiply_rows(rows, weight, scale)


def _multiply_rows(rows, weight, scale) -> jax.Array:
  if scale is None:
    return xla.transpose(xla.channel_sums(rows, weight), scaled=False)
  sums = jax.lax.platform_dependent(
    rows,
    weight,
    cpu=xla.channel_sums_by_blocks,
    default=xla.channel_sums,
  )
  return xla.transpose(sums * scale[:, None], scaled=True)
