"""Products of XLA, output channels first: at once, or block by block."""

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.mesh.region import mesh_of
from kvjax.streams.stored import Stored

ROWS_FIRST = 128  # rows from which a CPU multiplies rows first
BLOCK = 1 << 20  # codes that are floats at a time: 4 MiB
SMALL = 1 << 14  # codes of a block that is not worth a loop


def decode_blocks(
  codes: jax.Array, scale: jax.Array, zero: jax.Array
) -> jax.Array:
  """Returns the float32 weight `[..., in]` of blocks of 32 inputs."""
  return Stored(codes, scale, zero, bits=4, run=16).decode()


def channel_sums(
  rows: jax.Array, weight: jax.Array, *numbers: jax.Array
) -> jax.Array:
  """Returns `weight [out, in]` times `rows [M, in]`: `[out, M]`, float32.

  With `numbers`, scales and zeros of blocks, the weight is packed codes.

  Output channels come first because a CPU then reads the weight faster: with 8
  rows at 20 GB/s instead of 11 (JAX 0.10.2 and 0.12). With one row, and with
  hundreds, both orders are equally fast.
  """
  weight = decode_blocks(weight, *numbers) if numbers else weight
  return jnp.einsum(
    'OI,MI->OM',
    weight.astype(rows.dtype),
    rows,
    preferred_element_type=jnp.float32,
  )


def channel_sums_by_blocks(
  rows: jax.Array, codes: jax.Array, *numbers: jax.Array
) -> jax.Array:
  """Returns what `channel_sums` does of codes, block by block.

  XLA:CPU turns all codes to floats in memory before it multiplies by them, and
  those of all layers at once: 351 MB in a prefill of 1024 tokens of a model of
  107M parameters, where blocks of output channels need 84.
  """
  out, width = len(codes), rows.shape[1]
  blocks = max(-(-out // max(BLOCK // width, 1)), 2)
  # On several devices a slice of a weight that they share would gather it.
  is_split = mesh_of(codes) is not None
  if out * width < 2 * SMALL or not rows.shape[0] or is_split:
    return channel_sums(rows, codes, *numbers)
  channels = -(-out // blocks)

  def add_block(index, sums):
    # The last block reaches back, so that all are of one size.
    start = jnp.minimum(index * channels, out - channels)
    block = channel_sums(
      rows,
      *(
        jax.lax.dynamic_slice_in_dim(x, start, channels)
        for x in (codes, *numbers)
      ),
    )
    return jax.lax.dynamic_update_slice_in_dim(sums, block, start, 0)

  # The loop overwrites every one of these numbers. They are made from the rows
  # because XLA would hoist a constant, zeros for example, out of the layers and
  # allocate it for all of them at once.
  sums = jnp.broadcast_to(rows[:1, :1], (out, rows.shape[0]))
  return jax.lax.fori_loop(0, blocks, add_block, sums.astype(jnp.float32))


def transpose(sums: jax.Array, *, scaled: bool) -> jax.Array:
  """Returns sums `[out, M]` as `[M, out]`.

  Args:
    sums: of `channel_sums`.
    scaled: whether scales multiplied them.
  """
  rows = sums.shape[1]
  # Nothing is known of a symbolic number of rows, which is no int.
  known_many = isinstance(rows, int) and rows >= ROWS_FIRST
  hundreds = known_many and not scaled and target() == 'cpu'
  if rows == 1 or hundreds:
    # The transpose of a single column moves nothing. That of hundreds XLA folds
    # into the product, which then runs rows first, as fast, and whose result
    # nobody has to transpose: 1 ms for 8 in the MLP of a prefill.
    return sums.T
  # XLA would fold this transpose into the product, too, and restore the slow
  # order of its operands. The barrier prevents that.
  return jax.lax.optimization_barrier(sums).T
