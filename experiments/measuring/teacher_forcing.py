"""Text fed to a model through its cache, token by token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import kvjax


@functools.partial(
  jax.jit, static_argnames=('config', 'kernel'), donate_argnames='cache'
)
def feed(
  config: kvjax.ModelConfig,
  params: Any,
  cache: kvjax.Cache,
  tokens: jax.Array,
  *,
  kernel: str | None = None,
) -> tuple[jax.Array, kvjax.Cache]:
  """Returns logits after each token, and the cache that has seen all of them.

  Args:
    config, params: the model.
    cache: of B rows; donated.
    tokens: int32 `[B, T]`; these are fed, not what the model would write. -1
      is no token.
    kernel: that must attend; None for the fastest.

  Returns:
    Float32 `[B, T, V]`, and the cache.
  """

  def step(cache, token):
    logits, cache = kvjax.decode_step(
      config, params, cache, token, kernel=kernel
    )
    return cache, logits

  cache, logits = jax.lax.scan(step, cache, tokens.T)
  return jnp.moveaxis(logits, 0, 1), cache
