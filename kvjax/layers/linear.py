"""Projections: two-dimensional weights `[out, in]`, float32 accumulation.

A weight may be a `CodedWeight`: the product is that of its codes, its scales
multiply the sums.

The order is that of published checkpoints, and the one a CPU reads fastest:
with 8 rows `W [out, in] @ x [in, 8]` reaches twice the bandwidth of
`x [8, in] @ W [in, out]`, with one row and with hundreds it is as fast. What
hundreds leave would then be turned, at a cost: they are multiplied as they lie.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.kernels.matmul import cpu_library
from kvjax.layers.int8_weight import CodedWeight

BLOCK = 1 << 20  # elements of a coded weight that a CPU widens at a time
SMALL = 1 << 14  # that a loop would not be worth
MANY = 128  # rows that a CPU multiplies as they lie


def init_linear(
  key: jax.Array, name: str, width: int, out: int, *, bias: bool, dtype: Any
) -> dict[str, jax.Array]:
  """Returns `{name: [out, width]}` (and `name_bias`), fan-in scaled."""
  weight = jax.random.normal(key, (out, width), jnp.float32) * width**-0.5
  params = {name: weight.astype(dtype)}
  return params | ({f'{name}_bias': jnp.zeros((out,), dtype)} if bias else {})


def linear(params: Mapping[str, Any], name: str, x: jax.Array) -> jax.Array:
  """Returns `x [B, T, in]` times `params[name] [out, in]` (+ its bias).

  The product is of two matrices: a weight with more axes is copied by XLA
  every step when one of them does not suit the dot.
  """
  weight = params[name]
  rows = x.reshape(-1, x.shape[-1])
  y = matmul(rows, weight).astype(x.dtype)
  y = y.reshape(x.shape[:-1] + (weight.shape[0],))
  bias = params.get(f'{name}_bias')
  return y if bias is None else y + bias.astype(x.dtype)[None, None, :]


def matmul(rows: jax.Array, weight: jax.Array | CodedWeight) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32."""
  coded = isinstance(weight, CodedWeight)
  codes, scale = (weight.codes, weight.scale) if coded else (weight, None)
  if cpu_library.refuses(rows, codes):
    return _plain(rows, codes, scale)
  return cpu_library.project(rows, codes, scale, _plain)


def _plain(
  rows: jax.Array, codes: jax.Array, scale: jax.Array | None
) -> jax.Array:
  if rows.shape[0] == 1 and target() == 'gpu':
    return _summed(rows, codes, scale)
  lone = rows.shape[0] == 1 and rows.dtype != jnp.float32
  # XLA:CPU materialises a float32 copy of the weight for a one-row product of
  # narrower types; two rows go to a kernel that widens as it reads.
  if lone:
    rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
  if scale is None:
    y = _sums(rows, codes)
  else:
    y = jax.lax.platform_dependent(rows, codes, cpu=_by_blocks, default=_sums)
    y = y * scale[:, None]
  # Without the barrier XLA folds the transpose into the dot and swaps its
  # operands back: to the slow order, unless rows are many.
  many = rows.shape[0] >= MANY and scale is None and target() == 'cpu'
  y = y.T if many or rows.shape[0] == 1 else jax.lax.optimization_barrier(y).T
  return y[:1] if lone else y


def _sums(rows: jax.Array, codes: jax.Array) -> jax.Array:
  return jnp.einsum(
    'OI,MI->OM',
    codes.astype(rows.dtype),
    rows,
    preferred_element_type=jnp.float32,
  )


def _by_blocks(rows: jax.Array, codes: jax.Array) -> jax.Array:
  """XLA:CPU writes wide codes before it multiplies: some lines at a time.

  On several devices all at once: a slice of what is split would gather it.
  """
  out, width = codes.shape
  count = max(-(-out // max(BLOCK // width, 1)), 2)
  whole = codes.size < 2 * SMALL or not rows.shape[0]
  if whole or jax.device_count() > 1:
    return _sums(rows, codes)
  lines = -(-out // count)

  def block(i, y):
    start = jnp.minimum(i * lines, out - lines)  # the last reaches back
    part = jax.lax.dynamic_slice_in_dim(codes, start, lines)
    part = _sums(rows, part)
    return jax.lax.dynamic_update_slice_in_dim(y, part, start, 0)

  # What needs no activation, zeros say, XLA would make for all layers at once;
  # each of these is overwritten.
  start = jnp.broadcast_to(rows[:1, :1], (out, rows.shape[0]))
  return jax.lax.fori_loop(0, count, block, start.astype(jnp.float32))


def _summed(
  row: jax.Array, codes: jax.Array, scale: jax.Array | None
) -> jax.Array:
  """Returns the product of a lone row, as a GPU computes it fastest.

  Summing lines reads a weight at the speed of memory, and XLA fuses with it
  what comes before and after; for a product it pads the row to the tile of a
  tensor core, and adds up the parts of split sums by a kernel of their own.
  """
  y = _line_sums(row, codes)
  return (y if scale is None else y * scale)[None]


# Under `vmap` the rows are many after all; a derivative is that of a product.
@jax.custom_jvp
def _line_sums(row: jax.Array, codes: jax.Array) -> jax.Array:
  @jax.custom_batching.custom_vmap
  def total(row, codes):
    return jnp.sum(codes.astype(jnp.float32) * row.astype(jnp.float32), axis=1)

  @total.def_vmap
  def _(size, batched, row, codes):
    del size
    axes = [0 if whole else None for whole in batched]
    return jax.vmap(_lone_product, axes)(row, codes), True

  return total(row, codes)


def _lone_product(row: jax.Array, codes: jax.Array) -> jax.Array:
  return _sums(row, codes)[:, 0]


@_line_sums.defjvp
def _line_sums_jvp(primals, tangents):
  return jax.jvp(_lone_product, primals, tangents)


def split_heads(x: jax.Array, *heads: int) -> jax.Array:
  """Returns `[B, T, K * ... * H]` as `[B, K, ..., T, H]`."""
  x = x.reshape(x.shape[:2] + heads + (-1,))
  return jnp.moveaxis(x, 1, -2)


def join_heads(x: jax.Array) -> jax.Array:
  """Returns `[B, K, ..., T, H]` as `[B, T, K * ... * H]`."""
  x = jnp.moveaxis(x, -2, 1)
  return x.reshape(x.shape[:2] + (-1,))
