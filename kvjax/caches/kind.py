"""The protocol of a cache kind: where tokens go, and nothing of what they are.

A kind is a choice: frozen, hashable, static under jit. Its state is a book of
integers, one for all layers of that kind, kept apart from the stores of the
layers, so that a step decides once where its tokens go. To write a kind,
subclass `Kind` and override what differs from a dense cache.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.caches.array_spec import array_spec
from kvjax.context import target
from kvjax.native import write_narrow
from kvjax.streams.view import Streams, View, contiguous_view, fresh_view
from kvjax.streams.visibility import Visibility

EMPTY = -1  # position of a slot that holds no token


@struct.dataclass
class Book:
  """Which token each slot holds.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, `EMPTY` where a slot holds none.
  """

  positions: jax.Array


@dataclasses.dataclass(frozen=True)
class Kind:
  """A dense cache: slot p holds the token at position p, up to the capacity.

  Attributes:
    slots: slots a row; None until `bind` sets it from the capacity.
  """

  slots: int | None = dataclasses.field(default=None, kw_only=True)

  @property
  def observes(self) -> bool:
    """Whether `evict` wants the weight that each slot received."""
    return False

  @property
  def book_per_layer(self) -> bool:
    """Whether layers of this kind hold different tokens."""
    return False

  @property
  def size(self) -> int:
    """Slots a row; the kind must be bound."""
    if self.slots is None:
      raise ValueError(f'{self} has no slots yet: call bind(capacity) first.')
    return self.slots

  @property
  def name(self) -> str:
    return type(self).__name__.lower()

  @property
  def chunk(self) -> int | None:
    """Most tokens one call may write before it reads; None for any number."""
    return None

  @property
  def limit(self) -> int | None:
    """Most tokens a row may hold; None for no limit."""
    return self.slots

  @property
  def row_slots(self) -> int:
    """Slots that attention may read for one row."""
    return self.size

  def bind(self, capacity: int) -> Self:
    """Returns this kind with slots for `capacity` tokens a row."""
    return dataclasses.replace(self, slots=self.slots or capacity)

  def visible_through(self, visibility: Visibility) -> Visibility:
    """Returns what a query sees through this kind."""
    return visibility

  def leaf_axes(self, batch: int, heads: int) -> tuple[tuple[int, str], ...]:
    """Returns `(size, axis name)` of a leaf's axes before its features."""
    return (batch, 'batch'), (heads, 'kv_heads'), (self.size, 'slots')

  def book(self, batch: int, heads: int) -> Any:
    """Returns the specification of an empty book."""
    del heads
    shape = (batch, 1, self.size)
    axes = ('batch', 'kv_heads', 'slots')
    return Book(array_spec(shape, jnp.int32, axes, EMPTY))

  def has_room(
    self, book: Any, length: jax.Array, count: jax.Array
  ) -> jax.Array:
    """Returns bool `[B]`: rows of `length` tokens with room for `count` more.

    Beyond `limit`, which the caller asks. A row without new tokens has room.
    """
    del book, count
    return jnp.ones_like(length, bool)

  def place(
    self, book: Any, length: jax.Array, positions: jax.Array
  ) -> tuple[Any, Any]:
    """Decides, once a step, where tokens go.

    Args:
      book: before the step.
      length: int32 `[B]`, tokens seen before the step.
      positions: int32 `[B, T]` of the new tokens, -1 where there is none.

    Returns:
      The book that holds them, and slots `[B, 1 | K, T]`; a slot outside the
      store is written nowhere.
    """
    del length
    slots = self.slot_of(positions)[:, None, :]
    held = write_rows(book.positions, positions[:, None, :], slots)
    return book.replace(positions=held), slots

  def slot_of(self, positions: jax.Array) -> jax.Array:
    """Returns the slot `[B, T]` of each position; outside for none."""
    return jnp.where(positions >= 0, positions, self.outside(positions))

  def outside(self, positions: jax.Array) -> jax.Array:
    """Returns distinct slots beyond the store: scatters promise uniqueness."""
    steps = jnp.arange(positions.shape[-1], dtype=jnp.int32)
    return jnp.broadcast_to(self.size + steps, positions.shape)

  def write(self, store: Streams, new: Streams, slots: Any) -> Streams:
    """Returns the store with tokens `[B, K, T, ...]` in their slots."""
    return jax.tree.map(lambda leaf, x: write_rows(leaf, x, slots), store, new)

  def views(
    self, book: Any, store: Streams, length: jax.Array
  ) -> tuple[View, ...]:
    """Returns views of all slots; no array work but what fetches ask for.

    `length` counts the tokens that the book holds, new ones included.
    """
    filled, ordered = jnp.max(length), self.limit is not None
    return (contiguous_view(store, book.positions, filled, ordered=ordered),)

  def fresh_views(self, new: Streams, positions: jax.Array) -> tuple[View, ...]:
    """Returns views of tokens `[B, K, T, ...]` that are not written yet."""
    return (fresh_view(new, positions),)

  def evict(
    self,
    book: Any,
    weights: jax.Array | None,
    before: jax.Array,
    after: jax.Array,
  ) -> Any:
    """Returns the book after a step from `before [B]` tokens to `after [B]`.

    Slots received `weights`, shaped as the book's positions, None unless
    `observes`. Eviction forgets a position; no stream ever moves.
    """
    del weights, before, after
    return book

  def shortest_rewind(self, book: Any, length: jax.Array) -> jax.Array:
    """Returns int32 `[B]`: the smallest length a row can be rewound to.

    All that a query at that position sees is still there. The present length
    is always allowed.
    """
    del book
    return jnp.zeros_like(length)

  def rewind(
    self, book: Any, before: jax.Array, after: jax.Array
  ) -> tuple[Any, jax.Array, Any]:
    """Returns the book without tokens from position `after [B]` on.

    Returns:
      The book, bool `[B]` whether it had room for that (pages can run out),
      and moves that `apply` makes in every store (None for none).
    """
    held = book.positions
    kept = jnp.where(held < after[:, None, None], held, EMPTY)
    fits = jnp.ones_like(before, bool)
    return book.replace(positions=kept), fits, None

  def needs_no_copy(self, book: Any, length: jax.Array) -> jax.Array:
    """Returns bool `[B]`: rows that go back to `length` and share no store."""
    del book
    return jnp.ones_like(length, bool)

  def after_gather(
    self, book: Any, length: jax.Array
  ) -> tuple[Any, jax.Array, Any]:
    """Returns the same, after rows were gathered and some emptied."""
    held = jnp.where(length[:, None, None] > 0, book.positions, EMPTY)
    return book.replace(positions=held), jnp.ones_like(length, bool), None

  def copy_pages(self, store: Streams, moves: Any) -> Streams:
    """Returns the store after the moves that `rewind` or `settle` asked for."""
    del moves
    return store

  def offset_pages(self, book: Any, pages: int) -> Any:
    """Returns the book for a pool that begins `pages` later."""
    del pages
    return book


def first_held(held: jax.Array) -> jax.Array:
  """Returns int32 `[B]`: the lowest position in slots `[B, K, S]`, or 0."""
  lowest = jnp.min(jnp.where(held >= 0, held, 2**30), axis=(1, 2))
  return jnp.where(lowest == 2**30, 0, lowest)


def write_rows(leaf: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
  """Writes `new [B, K, T, ...]` into `leaf [B, K, S, ...]` at `[B, 1|K, T]`.

  In place, if the leaf is donated.
  """
  return write_narrow.put(leaf, new, slots, _scatter)


def _scatter(leaf, new, slots):
  """Scatters; split along batch or heads, a mesh need not communicate."""

  def put(row, values, where):
    return row.at[where].set(values, mode='drop', unique_indices=True)

  if target() == 'gpu':  # XLA makes two kernels of a scatter of one index
    slots = jnp.broadcast_to(slots, new.shape[:3])
  heads = 0 if slots.shape[1] == leaf.shape[1] else None
  slots = slots if heads == 0 else slots[:, 0]
  return jax.vmap(jax.vmap(put, (0, 0, heads)))(leaf, new, slots)
