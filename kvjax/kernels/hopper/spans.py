"""Which slots a row must read, from the positions that ask."""

from typing import Any

import jax
import jax.numpy as jnp

from kvjax.streams.visibility import Visibility


def spans(
  positions: jax.Array,
  held: jax.Array,
  filled: Any,
  rule: Visibility,
  ordered: bool,
) -> jax.Array:
  """Returns int32 `[B, 3]`: what each row must read of its slots.

  First slot, end, and the slot below which each of those holds a token. Where
  slots are ordered, they follow from the queries' positions alone.

  Args:
    positions: int32 `[B, T]` of the queries, -1 where there is none.
    held: int32 `[B, 1 | K, S]` of the slots.
    filled: no slot from here on holds a token.
    rule: which keys a query sees.
    ordered: as in `View`.
  """
  slots = held.shape[2]
  last = jnp.max(positions, axis=1) + 1
  if not ordered:
    steps = jnp.arange(1, slots + 1, dtype=jnp.int32)[None, None, :]
    end = jnp.max(jnp.where(held >= 0, steps, 0), axis=(1, 2))
    end = jnp.where(last > 0, end, 0)
    return jnp.stack([jnp.zeros_like(end), end, jnp.zeros_like(end)], axis=1)
  most = jnp.minimum(jnp.asarray(filled, jnp.int32), slots)
  earliest = jnp.min(jnp.where(positions < 0, slots, positions), axis=1)
  return jnp.stack(span_of(last, earliest, most, rule), axis=1)


def span_of(
  last: Any, earliest: Any, most: Any, rule: Visibility
) -> tuple[Any, Any, Any]:
  """Returns what is read of slots in order: as `spans`, of one row or many.

  Args:
    last: one more than the last position that asks; 0 where none does.
    earliest: the first position that asks; the slots where none does.
    most: no slot from here on holds a token.
    rule: which keys a query sees.
  """
  end = jnp.minimum(last, most) if rule.causal else jnp.where(last > 0, most, 0)
  first: Any = 0
  if rule.window is not None and not rule.sink_tokens:
    first = jnp.maximum(first, earliest - (rule.window - 1))
  if rule.chunk is not None:
    first = jnp.maximum(first, earliest // rule.chunk * rule.chunk)
  return jnp.minimum(first, end), end, last
