"""Products of several rows written rows first, raced against the library's.

A candidate: XLA:GPU launches fewer programs for it (15 a layer where the
library's order needs 21, by compilation), and it has not run on a GPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock
from experiments.measuring.attention import Pace, normal
from kvjax.layers import linear

TOLERANCE = 3e-2


def matmul(rows: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns `rows [M, in]` times `weight [out, in]`: `[M, out]`, float32."""
  return jnp.einsum(
    'MI,OI->MO',
    rows,
    weight.astype(rows.dtype),
    preferred_element_type=jnp.float32,
  )


def race(rows: int, out: int, width: int, pace: Pace) -> dict[str, Any]:
  """Returns results of both orders, by name.

  Each call multiplies by several weights, so that none of them is cached.

  Args:
    rows: M, 2 or more: a single row is no product on a GPU.
    out: output channels.
    width: input channels.
    pace: how the race is run.
  """
  weight_bytes = 2 * out * width
  copies = max(1, -(-pace.rotate // weight_bytes))
  x, *weights = normal(0, (rows, width), *[(out, width)] * copies)
  x = x.astype('bfloat16')
  weights = [weight.astype('bfloat16') for weight in weights]
  want = np.asarray(x, np.float64) @ np.asarray(weights[0], np.float64).T

  def runner(product, kernel):
    multiply = jax.jit(lambda x, weights: [product(x, w) for w in weights])
    start = functools.partial(multiply, x, weights)
    return clock.Runner(
      clock.queued(start, pace.calls, jax.block_until_ready),
      weight_bytes,
      kernel,
      clock.difference(start()[0], want),
      TOLERANCE,
      pace.calls * copies,
    )

  return clock.race(
    {
      'kvjax': runner(linear.matmul, 'library'),
      'kvjax, rows first': runner(matmul, 'rows first'),
    },
    pace.repeats,
  )
