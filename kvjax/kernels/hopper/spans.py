"""Which slots a row must read, from the positions of its queries."""

from typing import Any

import jax
import jax.numpy as jnp

from kvjax.streams.visibility import Visibility


def spans(
  positions: jax.Array,
  slot_positions: jax.Array,
  filled: Any,
  rule: Visibility,
  ordered: bool,
) -> jax.Array:
  """Returns int32 `[B, 3]`: what each row must read of its slots.

  First slot, end, and the slot below which each of those holds a token. Where
  slots are ordered, they follow from the queries' positions alone.

  Args:
    positions: int32 `[B, T]` of the queries, -1 where there is none.
    slot_positions: int32 `[B, 1 | K, S]`, -1 where a slot is empty.
    filled: no slot from here on holds a token.
    rule: which keys a query sees.
    ordered: as in `View`.
  """
  slots = slot_positions.shape[2]
  last = jnp.max(positions, axis=1) + 1
  if not ordered:
    steps = jnp.arange(1, slots + 1, dtype=jnp.int32)[None, None, :]
    end = jnp.max(jnp.where(slot_positions >= 0, steps, 0), axis=(1, 2))
    end = jnp.where(last > 0, end, 0)
    return jnp.stack([jnp.zeros_like(end), end, jnp.zeros_like(end)], axis=1)
  most = jnp.minimum(jnp.asarray(filled, jnp.int32), slots)
  earliest = jnp.min(jnp.where(positions < 0, slots, positions), axis=1)
  return jnp.stack(span_of_row(last, earliest, most, rule), axis=1)


def span_of_row(
  last: Any, earliest: Any, most: Any, rule: Visibility
) -> tuple[Any, Any, Any]:
  """Returns what is read of ordered slots: as `spans`, of one row or several.

  Args:
    last: one more than the last query position; 0 where there is none.
    earliest: the first query position; the slots where there is none.
    most: no slot from here on holds a token.
    rule: which keys a query sees.
  """
  end = jnp.minimum(last, most) if rule.causal else jnp.where(last > 0, most, 0)
  first: Any = 0
  # Sink tokens are the first of all: a row that sees them reads from slot 0.
  if rule.window is not None and not rule.sink_tokens:
    first = jnp.maximum(first, earliest - (rule.window - 1))
  if rule.chunk is not None:
    first = jnp.maximum(first, earliest // rule.chunk * rule.chunk)
  return jnp.minimum(first, end), end, last
