"""How far one model's predictions are from another's."""

import jax
import jax.numpy as jnp


@jax.jit
def divergence(full: jax.Array, other: jax.Array) -> jax.Array:
  """Returns the Kullback-Leibler divergence `KL(full || other)` in nats.

  Args:
    full: log-probabilities `[..., V]` that are taken for true.
    other: log-probabilities of the same shape.

  Returns:
    Float32 `[...]`.
  """
  return jnp.sum(jnp.exp(full) * (full - other), axis=-1)
