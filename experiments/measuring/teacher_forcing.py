"""Text fed to a model through its cache, token by token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

import kvjax


@functools.partial(
  jax.jit, static_argnames=('config', 'kernel'), donate_argnames='cache'
)
def feed(
  config: kvjax.ModelConfig,
  params: Any,
  cache: kvjax.Cache,
  tokens: jax.Array,
  following: jax.Array | None = None,
  *,
  kernel: str | None = None,
) -> tuple[jax.Array, kvjax.Cache]:
  """Returns logits or losses after each token, and the cache that saw them all.

  Args:
    config, params: the model.
    cache: of B rows; donated.
    tokens: int32 `[B, T]`; these are fed, not what the model would write. -1
      is no token.
    following: int32 `[B, T]`, the token after each; None for logits of all.
    kernel: that must attend; None for the fastest.

  Returns:
    Float32 logits `[B, T, V]`, or `[B, T]` nats of the following tokens, which
    take no memory that grows with V times T; and the cache.
  """

  def step(cache, column):
    token, target = column
    logits, cache = kvjax.decode_step(
      config, params, cache, token, kernel=kernel
    )
    return cache, logits if target is None else cross_entropy(logits, target)

  columns = jax.tree.map(jnp.transpose, (tokens, following))
  cache, results = jax.lax.scan(step, cache, columns)
  return jnp.moveaxis(results, 0, 1), cache
