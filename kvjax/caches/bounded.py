"""A bounded cache: the tokens that a score function would rather keep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.arguments import check_fields
from kvjax.caches.array_spec import array_spec
from kvjax.caches.kind import Kind
from kvjax.caches.scores import HeavyHitters, Score
from kvjax.caches.slots import EMPTY, write_rows


@struct.dataclass
class BoundedBook:
  """Which token each slot holds, and what it has received.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, -1 where a slot holds none.
    total: float32 `[B, 1 | K, S]`, the statistic of the score function.
  """

  positions: jax.Array
  total: jax.Array


@dataclasses.dataclass(frozen=True)
class Bounded(Kind):
  """Keeps at most `budget` tokens a row, chosen by a score function.

  A query sees at most `budget` tokens, itself included, as with a window of
  that size: each call leaves at most `budget - 1` survivors (the tokens of one
  call, up to `slack + 1`, see each other as well). Calls of more
  than `chunk` tokens are split, so survivors depend on the chunk, not on how a
  caller cuts the text into calls of whole chunks. Positions stay absolute:
  later queries are rotated where they are, not where the survivors end.

  Attributes:
    budget: most tokens a query sees, itself included.
    score: what is forgotten first.
    slack: `slack + 1` tokens are written before one eviction.
    per_head: every kv head keeps its own tokens.
  """

  budget: int = 0
  score: Score = HeavyHitters()
  slack: int = 0
  per_head: bool = True

  def __post_init__(self):
    # A budget counts a query and at least one token to remember.
    check_fields(self, at_least={'budget': 2, 'slack': 0, 'slots': 1})
    recent = getattr(self.score, 'recent', 0)
    if recent is not None and recent >= self.budget:
      raise ValueError(
        f'Bounded budget={self.budget} must exceed the recent={recent} '
        'tokens that its score never forgets.'
      )

  @property
  def observes(self):
    return self.score.observes

  @property
  def book_per_layer(self):
    return True

  def bind(self, capacity):
    del capacity
    score: Any = self.score
    # Not before: `dataclasses.replace` may still give another budget.
    if getattr(score, 'recent', 0) is None:
      score = dataclasses.replace(score, recent=self.budget // 2)
    slots = self.budget + self.slack
    return dataclasses.replace(self, slots=slots, score=score)

  @property
  def limit(self):
    return None

  @property
  def chunk(self):
    return self.slack + 1

  def book(self, batch, heads):
    shape = (batch, heads if self.per_head else 1, self.size)
    axes = ('batch', 'kv_heads', 'slots')
    return BoundedBook(
      array_spec(shape, jnp.int32, axes, EMPTY),
      array_spec(shape, jnp.float32, axes),
    )

  def place(self, book, length, positions):
    # Tokens take the first empty slots, so the tokens of a row are always in
    # its lowest slots, and attention reads no further than their number.
    index = jnp.arange(self.size, dtype=jnp.int32)[None, None, :]
    empty = jnp.where(book.positions == EMPTY, index, self.size)
    slots = _lowest(empty, positions.shape[1])
    outside = self.outside(positions)[:, None, :]
    slots = jnp.where(positions[:, None, :] >= 0, slots, outside)
    spread = jnp.broadcast_to(positions[:, None, :], slots.shape)
    written = write_rows(book.positions, spread, slots)
    return book.replace(positions=written), slots

  def evict(self, book, weights, before, after):
    before = before[:, None, None]
    after = after[:, None, None]
    live = book.positions != EMPTY
    total = book.total
    if weights is not None:
      # A slot may have changed hands: its new token starts from 0, not from
      # what the old token had received.
      total = jnp.where(book.positions < before, total, 0.0)
      # A row without new tokens keeps its statistic. The select also makes the
      # result depend on the old statistic, even for a score that starts anew;
      # without that XLA would not write a donated leaf in place.
      new = self.score.accumulate(total, weights)
      total = jnp.where(live & (after > before), new, total)
    age = after - 1 - book.positions
    priority = jnp.where(live, self.score.priority(total, age), jnp.inf)
    lowest = _lowest(priority, min(self.chunk, self.size))
    rank = jnp.arange(lowest.shape[-1], dtype=jnp.int32)[None, None, :]
    # The surplus follows from lengths. Counting live slots would give the same,
    # at the price of a number for every slot.
    survivors = self.budget - 1
    surplus = jnp.minimum(before, survivors) + (after - before) - survivors
    slots = jnp.where(rank < surplus, lowest, self.size + rank)
    empty = jnp.full(slots.shape, EMPTY, jnp.int32)
    return BoundedBook(write_rows(book.positions, empty, slots), total)

  def shortest_rewind(self, book, length):
    # The book does not say what was forgotten, and scores cannot be undone.
    return length


def _lowest(x: jax.Array, count: int) -> jax.Array:
  """Returns int32 `[B, K, count]`: slots of the lowest of `x [B, K, S]`."""
  if count == 1:  # top_k would sort all slots
    return jnp.argmin(x, axis=-1, keepdims=True).astype(jnp.int32)
  return jax.lax.top_k(-x, count)[1]
