"""Projections of few rows on a CPU: each weight is read once, as it is stored.

`project.h` through `jax.ffi`, for float32 rows: XLA reads float32 weights for
up to eight of them a little slower, and of narrower weights writes a wide copy
first, every step. Its products of bfloat16 rows and weights are as fast. Of
int8 weights it writes a copy for any rows: the kernel takes all of those.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.native import load

MAX_ROWS = 8  # beyond, a product of matrices is as fast
MAX_NARROW = 32  # bfloat16 rows of int8 weights, which XLA has to widen first
SMALL = 1 << 16  # bytes of a weight that a call of its own is not worth
DTYPES = ('float32', 'bfloat16', 'int8')


def refuses(rows: jax.Array, weight: jax.Array) -> str:
  """Returns why the kernel does not take `rows [M, in]`, `weight [out, in]`.

  '' where it does.
  """
  if load.unwanted():
    return load.unwanted()
  coded = weight.dtype == jnp.int8
  if not rows.shape[0]:
    return 'no rows'
  if (most := _most_rows(rows.dtype, coded)) < rows.shape[0]:
    return f'{rows.shape[0]} rows; it takes at most {most}'
  if weight.dtype.name not in DTYPES:
    return f'weights of {weight.dtype}; it reads {", ".join(DTYPES)}'
  if rows.dtype != jnp.float32 and not coded:
    return f'XLA reads weights as fast for rows of {rows.dtype}'
  if weight.shape[0] < 16 or weight.shape[1] % 16:
    return f'{weight.shape} is not 16 or more lines of a multiple of 16'
  if weight.size * weight.dtype.itemsize < SMALL:
    return 'the weight is small'
  return ''


def _most_rows(dtype: Any, coded: bool) -> float:
  if not coded:
    return MAX_ROWS
  return math.inf if dtype == jnp.float32 else MAX_NARROW


Product = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def project(
  rows: jax.Array, weight: jax.Array, scale: jax.Array | None, plain: Product
) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32.

  Args:
    rows: of any dtype; products are those of float32.
    weight: that `refuses` did not refuse.
    scale: float32 `[out]`, multiplies each line's sums; None for none.
    plain: the same product in plain JAX, for derivatives and other platforms.
  """
  return _project(plain, rows, weight, scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _project(plain, rows, weight, scale):

  @jax.custom_batching.custom_vmap
  def product(rows, weight, scale):
    # One program may be lowered for another platform than the process runs on.
    given = rows, weight, scale
    return jax.lax.platform_dependent(*given, cpu=_call, default=plain)

  @product.def_vmap
  def _(size, batched, rows, weight, scale):
    if batched[1] or batched[2]:
      axes = [0 if whole else None for whole in batched]
      return jax.vmap(plain, axes)(rows, weight, scale), True
    merged = rows.reshape(-1, rows.shape[-1])
    wide = refuses(merged, weight)
    chosen = plain if wide else functools.partial(_project, plain)
    y = chosen(merged, weight, scale)
    return y.reshape(size, -1, weight.shape[0]), True

  return product(rows, weight, scale)


@_project.defjvp
def _project_jvp(plain, primals, tangents):
  return jax.jvp(plain, primals, tangents)


def _call(
  rows: jax.Array, weight: jax.Array, scale: jax.Array | None
) -> jax.Array:
  count = rows.shape[0]
  more = 0 if count <= 2 else -count % 4  # tiles hold one row, two or four
  rows = jnp.pad(rows.astype(jnp.float32), ((0, more), (0, 0)))
  shape = (count + more, weight.shape[0])
  call = jax.ffi.ffi_call(
    load.PROJECT,
    jax.ShapeDtypeStruct(shape, jnp.float32),
    vmap_method='sequential',
  )
  scale = jnp.zeros((0,), jnp.float32) if scale is None else scale
  return call(rows, weight, scale)[:count]
