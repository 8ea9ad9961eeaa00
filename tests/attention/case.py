"""One small problem of attention, shared by the tests of the core."""

from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from kvjax.streams.view import fresh_view

B, K, G, T, S, H, E = 2, 3, 2, 5, 13, 7, 11
SCALE = H**-0.5
POSITIONS = jnp.asarray([[8, 9, 10, 11, 12], [3, 4, -1, -1, -1]], jnp.int32)
SLOT_POSITIONS = jnp.asarray(
  [[*range(13)], [4, -1, 0, 3, -1, 1, 2, -1, -1, -1, -1, -1, -1]], jnp.int32
)
SINKS = jax.random.normal(jax.random.key(8), (K, G))


def draw(
  seed: int = 0, kv: int = K, groups: int = G, tokens: int = T, slots: int = S
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns normal queries, keys and values."""
  a, b, c = jax.random.split(jax.random.key(seed), 3)
  return (
    jax.random.normal(a, (B, kv, groups, tokens, H)),
    jax.random.normal(b, (B, kv, slots, H)),
    jax.random.normal(c, (B, kv, slots, E)),
  )


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  positions: jax.Array = POSITIONS,
  slot_positions: jax.Array = SLOT_POSITIONS,
  block: int | None = None,
  **rules: Any,
) -> tuple[jax.Array, jax.Array]:
  """Attends to one view of arrays."""
  view = fresh_view({'key': k, 'value': v}, slot_positions)
  scoring = kvjax.Scoring(SCALE, **rules)
  return kvjax.attend({'key': q}, positions, (view,), scoring, block=block)


def see(**rules: Any) -> dict[str, kvjax.Visibility]:
  """Returns the option of a rule."""
  return {'visibility': kvjax.Visibility(**rules)}
