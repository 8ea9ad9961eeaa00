"""Products of few rows on a CPU: each weight is read once, as it is stored.

`project.h` through `jax.ffi`. XLA reads float32 weights for up to eight float32
rows a little slower, and of narrower weights it writes a wide copy first, every
step. Its products of bfloat16 rows and weights are as fast. Of int8 weights XLA
writes a copy for any number of rows: the library takes all of those.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.native import load

MAX_ROWS = 8  # beyond, XLA's product of matrices is as fast
MAX_NARROW = 32  # bfloat16 rows of int8 weights, which XLA has to widen first
SMALL = 1 << 16  # bytes of a weight that is not worth a call of the library
DTYPES = ('float32', 'bfloat16', 'int8')


def refuses(rows: jax.Array, weight: jax.Array) -> str:
  """Returns why the library does not take `rows [M, in]`, `weight [out, in]`.

  '' where it does.
  """
  if reason := load.unwanted(rows, weight):
    return reason
  is_int8 = weight.dtype == jnp.int8
  is_packed = weight.dtype == jnp.uint8
  count = rows.shape[0]
  if not count:
    return 'no rows'
  if not isinstance(count, int):
    return f'it takes a known number of rows, not {count}'
  if count > (most := _most_rows(rows.dtype, is_int8)):
    return f'{count} rows; it takes at most {most}'
  if weight.dtype.name not in DTYPES and not is_packed:
    return f'weights of {weight.dtype}; it reads {", ".join(DTYPES)}'
  if rows.dtype != jnp.float32 and not is_int8 and not is_packed:
    return f'XLA reads weights as fast for rows of {rows.dtype}'
  if is_packed and rows.shape[1] % 64:
    return f'{rows.shape[1]} inputs in four bits are no multiple of 64'
  if weight.shape[0] < 16 or weight.shape[1] % 16:
    return (
      f'{weight.shape} is not 16 or more output channels of a multiple of 16'
    )
  if weight.size * weight.dtype.itemsize < SMALL:
    return 'the weight is small'
  return ''


def _most_rows(dtype: Any, is_int8: bool) -> float:
  if not is_int8:
    return MAX_ROWS
  return math.inf if dtype == jnp.float32 else MAX_NARROW


Product = Callable[
  [jax.Array, jax.Array, jax.Array | None, jax.Array | None], jax.Array
]


def multiply(
  rows: jax.Array,
  weight: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None,
  plain: Product,
) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32.

  Args:
    rows: of any dtype; products are those of float32.
    weight: that `refuses` did not refuse.
    scale: float32 `[out]`, multiplies the sums of each output channel; None for
      none. Of packed codes as in `choose.multiply`.
    zero: of packed codes; None for none.
    plain: the same product in plain JAX, for derivatives and other platforms.
  """
  return _multiply(plain, rows, weight, scale, zero)


# The library has no derivative; that of the plain product stands in for it.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _multiply(plain, rows, weight, scale, zero):

  @jax.custom_batching.custom_vmap
  def product(rows, weight, scale, zero):
    # One program may be lowered for another platform than the process runs on.
    return jax.lax.platform_dependent(
      rows, weight, scale, zero, cpu=_call, default=plain
    )

  # Under `vmap` over the rows alone all rows are multiplied in one call, so
  # that the weight is still read once: a call for each example would read it
  # again each time.
  @product.def_vmap
  def _(size, batched, rows, weight, scale, zero):
    if any(batched[1:]):
      axes = [0 if is_batched else None for is_batched in batched]
      return jax.vmap(plain, axes)(rows, weight, scale, zero), True
    merged = rows.reshape(-1, rows.shape[-1])
    if refuses(merged, weight):
      y = plain(merged, weight, scale, zero)
    else:
      y = _multiply(plain, merged, weight, scale, zero)
    return y.reshape(size, -1, weight.shape[0]), True

  return product(rows, weight, scale, zero)


@_multiply.defjvp
def _multiply_jvp(plain, primals, tangents):
  return jax.jvp(plain, primals, tangents)


def _call(
  rows: jax.Array,
  weight: jax.Array,
  scale: jax.Array | None,
  zero: jax.Array | None,
) -> jax.Array:
  count = rows.shape[0]
  # The library multiplies one, two or four rows at a time.
  padding = 0 if count <= 2 else -count % 4
  rows = jnp.pad(rows.astype(jnp.float32), ((0, padding), (0, 0)))
  call = jax.ffi.ffi_call(
    load.PROJECT if zero is None else load.PROJECT_BLOCKS,
    jax.ShapeDtypeStruct((count + padding, weight.shape[0]), jnp.float32),
    vmap_method='sequential',
  )
  if zero is not None:
    return call(rows, weight, scale, zero)[:count]
  scale = jnp.zeros((0,), jnp.float32) if scale is None else scale
  return call(rows, weight, scale)[:count]
