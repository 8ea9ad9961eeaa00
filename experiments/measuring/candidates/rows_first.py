"""Products of several rows written rows first, raced against the library's.

A candidate: XLA:GPU launches fewer programs for it (15 a layer where the
library's order needs 21, by compilation), and it has not run on a GPU.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock
from experiments.measuring.attention import normal
from experiments.measuring.clock import Entry, Pace
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


@dataclasses.dataclass(frozen=True)
class ProductCase(clock.Case):
  """A product of several rows with a bfloat16 weight, in two orders.

  Attributes:
    rows: M, 2 or more: a single row is no product on a GPU.
    out: output channels.
    width: input channels.
  """

  record = 'product'
  fields = ('rows', 'out', 'width')

  rows: int
  out: int
  width: int

  def entries(self, pace: Pace) -> dict[str, Entry]:
    """Returns both orders; a call multiplies by weights that are not cached."""
    weight_bytes = 2 * self.out * self.width
    copies = max(1, -(-pace.rotate // weight_bytes))
    shapes = [(self.rows, self.width), *[(self.out, self.width)] * copies]
    x, *weights = (a.astype('bfloat16') for a in normal(0, *shapes))
    expected = clock.Expected(
      np.asarray(x, np.float64) @ np.asarray(weights[0], np.float64).T,
      weight_bytes,
      TOLERANCE,
      pace.calls * copies,
    )

    def runner(product, kernel):
      multiply = jax.jit(lambda x, weights: [product(x, w) for w in weights])
      start = functools.partial(multiply, x, weights)
      call = clock.queued(start, pace.calls, jax.block_until_ready)
      return expected.runner(call, kernel, start()[0])

    return {
      'kvjax': lambda: runner(linear.matmul, 'library'),
      'kvjax, rows first': lambda: runner(matmul, 'rows first'),
    }
