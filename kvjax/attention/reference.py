"""Uncached attention: a masked softmax over all keys, and nothing else.

Differentiable, readable by `kvjax.liveness`, and independent of `attend`,
whose oracle it is.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.attention.variant import Table, Variant
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams


def attend_uncached(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  streams: Streams,
  *,
  query_positions: jax.Array,
  key_positions: jax.Array,
  table: Table = None,
  relative: jax.Array | None = None,
  form: str = 'expanded',
  shown_to: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns one layer's attention `[B, T, D]` and its weights `[B, N, T, S]`.

  Args:
    variant: the attention.
    params: its parameters.
    x: normalised activations `[B, T, D]` that the queries are made of.
    streams: what the attended tokens left behind, `[B, K, S, H]` by name.
    query_positions: int32 `[B, T]`, -1 where there is no token.
    key_positions: int32 `[B, S]`, -1 where there is no token.
    table: rotary table at the query positions; None for none.
    relative: the model's table of relative biases `[buckets, N]`, if any.
    form: of latent attention, 'expanded' or 'absorbed'.
    shown_to: which queries see a key, beyond the mask; as in `View`.
  """
  chosen = variant.form(x.shape[1], form)
  with jax.named_scope('attend'):
    out, weights = plain_attention(
      chosen.project_queries(params, x, table),
      chosen.expand(params, streams),
      query_positions,
      key_positions,
      chosen.scoring(params, relative),
      shown_to,
    )
  y = chosen.project_output(params, out.astype(x.dtype))
  batch, heads, groups = weights.shape[:3]
  return y, weights.reshape((batch, heads * groups) + weights.shape[3:])


def plain_attention(
  queries: Streams,
  streams: Streams,
  positions: jax.Array,
  key_positions: jax.Array,
  scoring: Scoring,
  shown_to: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns output `[B, K, G, T, E]` and weights `[B, K, G, T, S]`.

  Args:
    queries: by key stream, `[B, K, G, T, H]`.
    streams: by name, `[B, K, S, H]`.
    positions: `[B, T]`, -1 where there is no token.
    key_positions: `[B, S]`, -1 where there is no token.
    scoring: scale, temperature, mask, bias and sinks.
    shown_to: which queries see a key, beyond the mask; None for all.
  """
  queries = scoring.scale_queries(queries, positions)
  products = [
    jnp.einsum(
      'BKGTH,BKSH->BKGTS',
      q,
      streams[name],
      preferred_element_type=jnp.float32,
    )
    for name, q in queries.items()
  ]
  scores = functools.reduce(jnp.add, products)
  scores = scores * scoring.scale
  if scoring.softcap is not None:
    scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
  if scoring.bias is not None:
    scores = scores + scoring.bias(
      positions[:, None, :, None],
      key_positions[:, None, None, :],
      scores.shape[1],
    )
  row, column = positions[:, :, None], key_positions[:, None, :]
  seen = scoring.visibility.sees(row, column) & (row >= 0)
  if shown_to is not None:
    seen &= shown_to(row, column)
  seen = seen[:, None, None]
  weights = masked_softmax(scores, seen, scoring.sinks)
  values = streams[scoring.value]
  # A weight of 0 does not silence a NaN, so values without a token become 0.
  is_token = (key_positions >= 0)[:, None, :, None]
  values = jnp.where(is_token, values, jnp.zeros_like(values))
  out = jnp.einsum(
    'BKGTS,BKSE->BKGTE',
    weights.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  return out, weights


def masked_softmax(
  scores: jax.Array, seen: jax.Array, sinks: jax.Array | None = None
) -> jax.Array:
  """Returns softmax over the last axis of what is seen; 0 for an empty row."""
  scores = jnp.where(seen, scores, -jnp.inf)
  top = jnp.max(scores, axis=-1, keepdims=True)
  if sinks is not None:
    sinks = sinks.astype(jnp.float32)[None, :, :, None, None]
    top = jnp.maximum(top, sinks)
  top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0.0, top))
  weights = jnp.where(seen, jnp.exp(scores - top), 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if sinks is not None:
    total = total + jnp.exp(sinks - top)
  return weights / jnp.where(total == 0, 1.0, total)
