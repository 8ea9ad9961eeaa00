"""Partial attention put together: parts of the slots, attended to apart."""

import jax
import jax.numpy as jnp

from kvjax.kernels.blockwise import finite, normalize


def merge(outs: jax.Array, lses: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Merges partial attention along the first axis by log-sum-exp."""
  if outs.shape[0] == 1:
    return outs[0], lses[0]
  top = finite(jnp.max(lses, axis=0))
  weights = jnp.exp(lses - top[None])
  out = jnp.sum(weights[..., None] * outs, axis=0)
  return normalize(top, jnp.sum(weights, axis=0), out)
