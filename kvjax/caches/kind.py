"""The protocol of a cache kind: where tokens go, and nothing of what they are.

A kind is a choice: frozen, hashable, static under jit. Its state is a book of
integers, one for all layers of that kind, kept apart from the stores of the
layers, so that a step decides once where its tokens go. To write a kind,
subclass `Kind` and override what differs from a dense cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.arguments import check_fields
from kvjax.caches.array_spec import array_spec
from kvjax.caches.evidence import Evidence
from kvjax.caches.slots import EMPTY, write_rows
from kvjax.renamed import KIND_METHODS, check_methods
from kvjax.streams.view import Streams, View, contiguous_view, fresh_view
from kvjax.streams.visibility import Visibility


@struct.dataclass
class Book:
  """Which token each slot holds.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, `EMPTY` where a slot holds none.
  """

  positions: jax.Array


class BookChange(NamedTuple):
  """A book after its rows were rewound or gathered.

  Attributes:
    book: the changed book.
    fits: bool `[B]`; False where pages ran out.
    moves: what `Kind.copy_pages` must do in every store; None for nothing.
  """

  book: Any
  fits: jax.Array
  moves: Any = None


class Tier(NamedTuple):
  """A part of a store, which is arranged like the store of another kind.

  Attributes:
    kind: that it is arranged like.
    book: of this part.
    store: streams by name.
    length: tokens of each row that are in this part, or were.
  """

  kind: 'Kind'
  book: Any
  store: Any
  length: Any


@dataclasses.dataclass(frozen=True)
class Kind:
  """A dense cache: slot p holds the token at position p, up to the capacity.

  Attributes:
    slots: slots a row; None until `bind` sets it from the capacity.
  """

  slots: int | None = dataclasses.field(default=None, kw_only=True)

  def __post_init__(self):
    check_fields(self, at_least={'slots': 1})

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__(**options)
    check_methods(cls, KIND_METHODS)

  @property
  def observes(self) -> bool:
    """Whether it reads queries a second time, to choose what it keeps."""
    return False

  @property
  def book_per_layer(self) -> bool:
    """Whether each layer chooses, from its own tokens, which ones it keeps.

    Each layer then calls `make_room` and `place` before its new tokens are
    written, and `observe` after attention; or, if the call is longer than
    `chunk`, `make_room` before it and `choose` after it.
    """
    return False

  @property
  def keeps_exact(self) -> bool:
    """Whether new tokens are stored exactly first, and encoded later."""
    return False

  @property
  def rotates_queries(self) -> bool:
    """Whether some views are scored by queries rotated to another position."""
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
  def piece(self) -> int | None:
    """Most tokens fed at once, longer calls in pieces; None for any number."""
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

  def bind_groups(self, capacity: int, exact: int, group: int) -> Self:
    """Returns this kind with slots for codes of groups of tokens.

    Args:
      capacity: tokens of a row.
      exact: of these, tokens that are no codes.
      group: neighbouring tokens that are encoded together.

    Raises:
      ValueError: the kind may forget one token of a group, or moves it.
    """
    raise ValueError(
      f'{self} cannot hold older tokens as codes beside exact new ones: codes '
      f'may be of groups of {group} tokens, and it keeps or forgets each by '
      'itself. Use Dense, Paged or Ring.'
    )

  def split(self, parts: int) -> Self:
    """Returns this kind for slots that several devices share.

    A kind that forgets by scores compares all slots of a row in every step.

    Args:
      parts: devices that share the slots of a row.

    Raises:
      ValueError: the kind cannot be split.
    """
    if parts > 1 and self.book_per_layer:
      raise ValueError(
        f'{type(self).__name__} compares the scores of all slots of a row, so '
        'no mesh can split its slots. Use rules without slots=: split rows and '
        'heads.'
      )
    return self

  def visible_through(self, visibility: Visibility) -> Visibility:
    """Returns what a query sees through this kind."""
    return visibility

  def leaf_axes(self, batch: int, heads: int) -> tuple[tuple[int, str], ...]:
    """Returns `(size, axis name)` of a leaf's axes before its features."""
    return (batch, 'batch'), (heads, 'kv_heads'), (self.row_slots, 'slots')

  def stream_spec(
    self, batch: int, heads: int, encoded: Any, exact: Any
  ) -> Any:
    """Returns the `ArraySpec`s of one stream.

    Args:
      batch: rows.
      heads: kv heads of the stream.
      encoded: what its codec stores, a pytree of `Trailing`.
      exact: what is stored of tokens that are not encoded yet.
    """
    del exact
    sizes, names = zip(*self.leaf_axes(batch, heads), strict=True)

    def spec(leaf):
      slots = sizes[-1] // leaf.tokens
      shape = sizes[:-1] + (slots,) + leaf.shape
      return array_spec(shape, leaf.dtype, names + leaf.axes)

    return jax.tree.map(spec, encoded)

  def tiers(self, book: Any, store: Any, length: Any) -> tuple['Tier', ...]:
    """Returns the parts of a store; one, but for a kind that keeps two.

    Args:
      book: of the kind; None where the parts' are not needed.
      store: streams by name, or anything of that structure.
      length: `[B]`, tokens of each row; None where the book is.
    """
    return (Tier(self, book, store, length),)

  def join(self, stores: Sequence[Any]) -> Any:
    """Returns the store whose parts `tiers` gave."""
    (store,) = stores
    return store

  def book(self, batch: int, heads: int) -> Any:
    """Returns the specification of an empty book."""
    del heads
    shape = (batch, 1, self.row_slots)
    axes = ('batch', 'kv_heads', 'slots')
    return Book(array_spec(shape, jnp.int32, axes, EMPTY))

  def has_room(
    self, book: Any, length: jax.Array, count: jax.Array
  ) -> jax.Array:
    """Returns bool `[B]`: rows of `length` tokens with room for `count` more.

    The caller compares with `limit`; this says whether anything else is short.
    A row without new tokens has room.
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
    written = write_rows(book.positions, positions[:, None, :], slots)
    return book.replace(positions=written), slots

  def slot_of(self, positions: jax.Array) -> jax.Array:
    """Returns the slot `[B, T]` of each position; outside for none."""
    return jnp.where(positions >= 0, positions, self.outside(positions))

  def outside(self, positions: jax.Array) -> jax.Array:
    """Returns distinct slots beyond the store: scatters promise uniqueness."""
    steps = jnp.arange(positions.shape[-1], dtype=jnp.int32)
    return jnp.broadcast_to(self.row_slots + steps, positions.shape)

  def write(self, store: Streams, new: Streams, slots: Any) -> Streams:
    """Returns the store with tokens `[B, K, T, ...]` in their slots."""
    return jax.tree.map(lambda leaf, x: write_rows(leaf, x, slots), store, new)

  def move(
    self,
    store: Streams,
    new: Streams,
    slots: Any,
    encode: Callable[[Streams], Streams],
  ) -> Streams:
    """Returns the store with tokens encoded that new ones make due.

    A layer calls it before it reads, and `write` before or after.

    Args:
      store: before the call.
      new: streams of the new tokens, as they will be written.
      slots: where `place` put them.
      encode: makes codes of exact tokens `[B, K, N, ...]`.
    """
    del new, slots, encode
    return store

  def views(
    self, book: Any, store: Streams, length: jax.Array
  ) -> tuple[View, ...]:
    """Returns views of all slots; arrays are touched when a block is fetched.

    `length` counts the tokens that the book holds, new ones included.
    """
    # A kind with a limit never reuses a slot: slot p holds position p.
    ordered = self.limit is not None
    filled = jnp.max(length)
    return (contiguous_view(store, book.positions, filled, ordered=ordered),)

  def views_before_write(
    self, old: tuple[Any, Any], new: tuple[Any, Any], store: Streams
  ) -> tuple[View, ...]:
    """Returns views of what is stored before new tokens are written.

    Args:
      old: book and length `[B]` without the new tokens.
      new: book and length with them.
      store: without them, after `move`.
    """
    del new
    return self.views(old[0], store, old[1])

  def fresh_views(self, new: Streams, positions: jax.Array) -> tuple[View, ...]:
    """Returns views of tokens `[B, K, T, ...]` that are not written yet."""
    return (fresh_view(new, positions),)

  def make_room(
    self, book: Any, evidence: Evidence, positions: jax.Array
  ) -> Any:
    """Returns the book without tokens that must leave before new ones come.

    Eviction forgets a position; no stream ever moves.

    Args:
      book: before the call.
      evidence: of its slots.
      positions: int32 `[B, T]` of the new tokens, -1 where there is none.
    """
    del evidence, positions
    return book

  def observe(self, book: Any, evidence: Evidence) -> Any:
    """Returns the book after the queries of a call have read its slots."""
    del evidence
    return book

  def choose(
    self, book: Any, evidence: Evidence, positions: jax.Array
  ) -> tuple[Any, Any]:
    """Decides, after a long call was read, which tokens stay and where.

    Args:
      book: without the new tokens.
      evidence: of its slots, and of the new tokens after them.
      positions: int32 `[B, T]` of the new tokens, -1 where there is none.

    Returns:
      The book, and slots `[B, 1 | K, T]` of the new tokens; a slot outside the
      store is written nowhere.
    """
    return self.place(book, evidence.before, positions)

  def shortest_rewind(self, book: Any, length: jax.Array) -> jax.Array:
    """Returns int32 `[B]`: the smallest length a row can be rewound to.

    All that a query at that position sees is still there. The present length
    is always allowed.
    """
    del book
    return jnp.zeros_like(length)

  def rewind(
    self, book: Any, before: jax.Array, after: jax.Array
  ) -> BookChange:
    """Returns the book without tokens from position `after [B]` on.

    Args:
      book: of rows that have seen `before` tokens.
      before: int32 `[B]`.
      after: int32 `[B]`, tokens that stay.
    """
    stays = book.positions < after[:, None, None]
    positions = jnp.where(stays, book.positions, EMPTY)
    fits = jnp.ones_like(before, bool)
    return BookChange(book.replace(positions=positions), fits)

  def needs_no_copy(self, book: Any, length: jax.Array) -> jax.Array:
    """Returns bool `[B]`: rows that go back to `length` and share no store."""
    del book
    return jnp.ones_like(length, bool)

  def after_gather(self, book: Any, length: jax.Array) -> BookChange:
    """Returns the book of gathered rows, each of which owns what it writes to.

    Args:
      book: whose rows were taken from another book, some of them repeatedly.
      length: int32 `[B]`, tokens of each row; a row of length 0 is emptied.
    """
    stays = length[:, None, None] > 0
    positions = jnp.where(stays, book.positions, EMPTY)
    fits = jnp.ones_like(length, bool)
    return BookChange(book.replace(positions=positions), fits)

  def copy_pages(self, store: Streams, moves: Any) -> Streams:
    """Returns the store after the moves of a `BookChange`."""
    del moves
    return store

  def offset_pages(self, book: Any, pages: int) -> Any:
    """Returns the book for a pool that begins `pages` later."""
    del pages
    return book
