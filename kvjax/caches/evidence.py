"""What a score function may look at: one layer's tokens, slot by slot."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.caches.slots import EMPTY
from kvjax.streams.view import LAST


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """The tokens among which a score chooses, in one layer and one call.

  Slots are those of the cache; after them come the tokens of a call that is
  read whole. What is behind a method is computed only where a score calls it.
  Lives inside one trace.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, -1 where a slot holds no token.
    length: int32 `[B]`, tokens that each row has seen.
    before: int32 `[B]`, tokens of each row before the call.
    is_prompt: bool `[B]`, rows whose prompt this call reads: rows that were
      empty, and rows with so many new tokens that the old ones compete.
    tokens: new tokens a row, T; 0 while room is made for new ones.
    total: float32 `[B, 1 | K, S]`, the statistic that the score keeps, 0 for a
      new token; None for a score that keeps none.
    read_streams: what `keys` and `values` return; see there.
    read_weights: what `weights` returns.
    read_queries: what `queries` returns.
  """

  positions: jax.Array
  length: jax.Array
  before: jax.Array
  is_prompt: jax.Array
  tokens: int
  total: Any
  read_streams: Callable[[], tuple[jax.Array, jax.Array]]
  read_weights: Callable[[], jax.Array]
  read_queries: Callable[[int], tuple[jax.Array, jax.Array]]

  @property
  def is_token(self) -> jax.Array:
    """Where a slot holds a token: bool, shaped as the positions."""
    return self.positions != EMPTY

  @property
  def is_new(self) -> jax.Array:
    """Where a slot holds a token of this call."""
    return self.positions >= self.before[:, None, None]

  @property
  def age(self) -> jax.Array:
    """0 for the newest token of the row; meaningless where there is none."""
    return self.length[:, None, None] - 1 - self.positions

  def keys(self) -> jax.Array:
    """Returns float32 `[B, K, S, H]`, 0 where there is no token.

    As attention reads them: decoded, and rotated. Tokens of a call that is read
    whole are as they were projected, before a codec rounds them. The parts of a
    key that is stored in several streams (MLA) are joined.
    """
    return self._cleared(self.read_streams()[0])

  def values(self) -> jax.Array:
    """Returns float32 `[B, K, S, E]`, 0 where there is no token."""
    return self._cleared(self.read_streams()[1])

  def weights(self) -> jax.Array:
    """Returns float32 `[B, 1 | K, S]`: attention that each slot received.

    It is the sum over the newest `Score.window` queries of the call, over query
    heads, and over kv heads that keep the same tokens.
    """
    return self.read_weights()

  def queries(self, future: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns float32 queries `[B, K, G, T, H]` and positions int32 `[B, T]`.

    A product of query and key is a score: the scale of attention is in them.

    Args:
      future: 0 for queries that are not rotated; otherwise each is the mean of
        its rotations to that number of positions after the row's last token.
    """
    return self.read_queries(future)

  def by_position(self, x: jax.Array) -> jax.Array:
    """Returns `x [B, K, S, ...]` with slots in order of position, empty last.

    The order is that of each row, and of each head where heads keep their own.
    """
    return _along_slots(x, self._order())

  def by_slot(self, x: jax.Array) -> jax.Array:
    """Undoes `by_position`."""
    return _along_slots(x, jnp.argsort(self._order(), axis=-1))

  def _order(self) -> jax.Array:
    last = jnp.where(self.is_token, self.positions, LAST)
    return jnp.argsort(last, axis=-1)

  def _cleared(self, x: jax.Array) -> jax.Array:
    # An empty slot may hold NaN.
    return jnp.where(self.is_token[..., None], x.astype(jnp.float32), 0.0)


def _along_slots(x: jax.Array, order: jax.Array) -> jax.Array:
  shape = x.shape[:2] + order.shape[2:]
  order = jnp.broadcast_to(order, shape)
  order = order.reshape(shape + (1,) * (x.ndim - 3))
  return jnp.take_along_axis(x, order, axis=2)
