"""Projections: two-dimensional weights `[out, in]`, float32 accumulation.

Which product multiplies by a weight is decided in `kernels/matmul/choose.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.kernels.matmul import choose
from kvjax.layers.int8_weight import CodedWeight


def init_linear(
  key: jax.Array, name: str, width: int, out: int, *, bias: bool, dtype: Any
) -> dict[str, jax.Array]:
  """Returns `{name: [out, width]}` (and `name_bias`), fan-in scaled.

  Args:
    key: of the random numbers.
    name: of the weight in the parameters.
    width: features of the input.
    out: features of the output.
    bias: whether there is one.
    dtype: of the parameters.
  """
  weight = jax.random.normal(key, (out, width), jnp.float32) * width**-0.5
  params = {name: weight.astype(dtype)}
  return params | ({f'{name}_bias': jnp.zeros((out,), dtype)} if bias else {})


def linear(params: Mapping[str, Any], name: str, x: jax.Array) -> jax.Array:
  """Returns `x [B, T, in]` times `params[name] [out, in]` (+ its bias).

  Args:
    params: the parameters that hold the weight.
    name: of the weight.
    x: activations `[B, T, in]`.
  """
  weight = params[name]
  # The product is of two matrices: XLA copies a weight with more axes every
  # step when one of the axes does not suit the product.
  rows = x.reshape(-1, x.shape[-1])
  y = matmul(rows, weight).astype(x.dtype)
  y = y.reshape(x.shape[:-1] + (weight.shape[0],))
  bias = params.get(f'{name}_bias')
  return y if bias is None else y + bias.astype(x.dtype)[None, None, :]


def matmul(rows: jax.Array, weight: jax.Array | CodedWeight) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32."""
  if isinstance(weight, CodedWeight):
    return choose.multiply(rows, weight.codes, weight.scale, weight.zero)
  return choose.multiply(rows, weight, None)


def split_heads(x: jax.Array, *heads: int) -> jax.Array:
  """Returns `[B, T, K * ... * H]` as `[B, K, ..., T, H]`.

  Args:
    x: `[B, T, K * ... * H]`.
    heads: the sizes `K, ...`, without H.
  """
  x = x.reshape(x.shape[:2] + heads + (-1,))
  return jnp.moveaxis(x, 1, -2)


def join_heads(x: jax.Array) -> jax.Array:
  """Returns `[B, K, ..., T, H]` as `[B, T, K * ... * H]`.

  Args:
    x: `[B, K, ..., T, H]`.
  """
  x = jnp.moveaxis(x, -2, 1)
  return x.reshape(x.shape[:2] + (-1,))
