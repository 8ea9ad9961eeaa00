"""Next-token loss, in nats to learn by and in bits to talk about."""

import math
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from kvjax.models.config import ModelConfig
from kvjax.models.uncached import forward


def next_token_loss(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """Returns `-log p(tokens[:, t] | tokens[:, :t])` for t >= 1.

  Args:
    logits: float32 `[B, T, V]`, after each token.
    tokens: int32 `[B, T]`.

  Returns:
    Float32 `[B, T - 1]`, nats.
  """
  chex.assert_rank(logits, 3)
  chex.assert_shape(tokens, logits.shape[:2])
  return optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], tokens[:, 1:]
  )


def loss(
  config: ModelConfig, params: Mapping[str, Any], tokens: jax.Array
) -> jax.Array:
  """Returns the mean loss of `tokens [B, T]`, uncached, in nats a token."""
  return jnp.mean(next_token_loss(forward(config, params, tokens), tokens))


def bits(nats: Any) -> Any:
  """Returns bits of nats."""
  return nats / math.log(2)
