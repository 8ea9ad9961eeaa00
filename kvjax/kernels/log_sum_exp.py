"""Partial softmax attention, normalised and merged by its log-sum-exp.

Flash-Decoding (Dao et al. 2023): attention over disjoint sets of slots is
`out = sum_i exp(lse_i - lse) out_i` with `lse = log sum_i exp(lse_i)`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def merge(
  parts: Sequence[tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
  """Merges attention over disjoint sets of slots, as if it were over all.

  `out = sum_i exp(lse_i - lse) out_i` with `lse = log sum_i exp(lse_i)`.

  Args:
    parts: outputs `[..., E]` and log-sum-exps `[...]`.

  Returns:
    Output `[..., E]` and log-sum-exp `[...]`; 0 and -inf where all are -inf.
  """
  outs, lses = zip(*parts, strict=True)
  return merge_stacked(jnp.stack(outs), jnp.stack(lses))


def merge_stacked(
  outs: jax.Array, lses: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Merges partial attention that is stacked along the first axis.

  Args:
    outs: `[N, ..., E]`.
    lses: `[N, ...]`.

  Returns:
    As `merge`.
  """
  if outs.shape[0] == 1:
    return outs[0], lses[0]
  top = finite(jnp.max(lses, axis=0))
  weights = jnp.exp(lses - top[None])
  # The output of a part that saw nothing is undefined and may be NaN: its
  # weight of 0 does not suffice, because 0 times NaN is NaN.
  saw_nothing = (lses == -jnp.inf)[..., None]
  shares = jnp.where(saw_nothing, 0, weights[..., None] * outs)
  return normalize(top, jnp.sum(weights, axis=0), jnp.sum(shares, axis=0))


def finite(x: jax.Array) -> jax.Array:
  """Returns x with 0 for -inf, so that differences are never NaN."""
  return jnp.where(x == -jnp.inf, 0.0, x)


def normalize(
  top: jax.Array, total: jax.Array, out: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns output and log-sum-exp of sums scaled by `exp(-top)`."""
  empty = total == 0
  safe = jnp.where(empty, 1.0, total)
  return out / safe[..., None], jnp.where(empty, -jnp.inf, top + jnp.log(safe))
