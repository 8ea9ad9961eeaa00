"""What a model predicts of given text: uncached, and through a cache."""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from experiments.training.loss import bits, next_token_loss
from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import decode_step
from kvjax.models.config import ModelConfig
from kvjax.streams.codecs import Codec


@functools.partial(jax.jit, static_argnames=('config', 'kind', 'codec'))
def logits_through_cache(
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: jax.Array,
  *,
  kind: Kind | None = None,
  codec: Codec | None = None,
) -> jax.Array:
  """Returns logits `[B, T, V]`, the tokens fed one by one through a cache.

  Args:
    config: the model.
    params: its parameters.
    tokens: int32 `[B, T]`; what the model would have said is ignored.
    kind: of every layer; None for each layer's default.
    codec: of the cache; None for the streams as they are.
  """
  chex.assert_rank(tokens, 2)
  batch, length = tokens.shape
  cache = init_cache(config, batch, length, kinds=kind, codec=codec)

  def step(cache, token):
    logits, cache = decode_step(config, params, cache, token)
    return cache, logits

  _, logits = jax.lax.scan(step, cache, tokens.T)
  return jnp.moveaxis(logits, 0, 1)


def bits_per_byte(logits: jax.Array, tokens: jax.Array) -> float:
  """Returns the mean of `-log2 p(byte | bytes before)` over all but the first.

  Args:
    logits: float32 `[B, T, V]`, after each token.
    tokens: int32 `[B, T]`.
  """
  return float(bits(jnp.mean(next_token_loss(logits, tokens))))


def assert_equal_logits(
  cached: jax.Array, uncached: jax.Array, relative: float
) -> float:
  """Returns the largest difference; raises beyond `relative` times the largest.

  Raises:
    AssertionError: cached and uncached decoding part.
  """
  scale = float(jnp.max(jnp.abs(uncached)))
  chex.assert_trees_all_close(cached, uncached, rtol=0.0, atol=relative * scale)
  return float(jnp.max(jnp.abs(cached - uncached)))
