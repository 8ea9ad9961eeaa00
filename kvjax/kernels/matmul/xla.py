"""The product of XLA, output channels first."""

import jax
import jax.numpy as jnp

from kvjax.context import target

ROWS_FIRST = 128  # rows from which a CPU multiplies rows first


def channel_sums(rows: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns `weight [out, in]` times `rows [M, in]`: `[out, M]`, float32.

  Output channels come first because a CPU then reads the weight faster: with 8
  rows at 20 GB/s instead of 11 (JAX 0.10.2 and 0.12). With one row, and with
  hundreds, both orders are equally fast.
  """
  return jnp.einsum(
    'OI,MI->OM',
    weight.astype(rows.dtype),
    rows,
    preferred_element_type=jnp.float32,
  )


def transpose(sums: jax.Array, *, scaled: bool) -> jax.Array:
  """Returns sums `[out, M]` as `[M, out]`.

  Args:
    sums: of `channel_sums`.
    scaled: whether scales multiplied them.
  """
  rows = sums.shape[1]
  hundreds = rows >= ROWS_FIRST and not scaled and target() == 'cpu'
  if rows == 1 or hundreds:
    # The transpose of a single column moves nothing. That of hundreds XLA folds
    # into the product, which then runs rows first, as fast, and whose result
    # nobody has to transpose: 1 ms for 8 in the MLP of a prefill.
    return sums.T
  # XLA would fold this transpose into the product, too, and restore the slow
  # order of its operands. The barrier prevents that.
  return jax.lax.optimization_barrier(sums).T
