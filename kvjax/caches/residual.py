"""Two tiers: exact tokens, and codes of older ones.

A codec may encode tokens in groups, or leave the first or the newest tokens as
they are (KIVI, arXiv 2402.02750). So new tokens are stored exactly, and move to
codes when a whole group of them has left a window. Groups go by position: rows
that are ragged or padded never share one, and a code is written once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.arguments import check_fields
from kvjax.caches.dense import Dense
from kvjax.caches.kind import Book, Kind, Tier
from kvjax.caches.slots import EMPTY, read_rows, write_rows
from kvjax.streams.codecs import Tiering


@struct.dataclass
class Tiers:
  """Both parts of a book, or of a stored stream.

  Attributes:
    coded: tokens that were encoded.
    exact: the first and the newest tokens.
  """

  coded: Any
  exact: Any

  @property
  def positions(self) -> jax.Array:
    """Positions of the coded part of a book, which may have pages."""
    return self.coded.positions


class TierSlots(NamedTuple):
  """Where the tokens of a call go.

  Attributes:
    exact: int32 `[B, 1, T]`, slots of the new tokens.
    due: int32 `[B, 1, N]`, exact slots of the tokens that may be encoded.
    new: int32 `[B, 1, T]`, which of these N each new token is.
    coded: slots of the N tokens as codes; outside for those that stay exact.
  """

  exact: jax.Array
  due: jax.Array
  new: jax.Array
  coded: Any


@dataclasses.dataclass(frozen=True)
class Exact(Kind):
  """The first tokens, and a ring of the newest: `Residual` has one.

  Attributes:
    first: tokens whose slots are never used again.
  """

  first: int = 0

  def __post_init__(self):
    check_fields(self, at_least={'first': 0})

  @property
  def limit(self):
    return None  # the ring forgets

  def slot_of(self, positions):
    ring = self.size - self.first
    last = jnp.max(positions, axis=-1, keepdims=True)
    is_first = positions < self.first
    kept = (positions >= 0) & (is_first | (positions > last - ring))
    slots = jnp.where(is_first, positions, self.recent(positions))
    return jnp.where(kept, slots, self.outside(positions))

  def recent(self, positions: jax.Array) -> jax.Array:
    """Returns the ring's slot of each position."""
    ring = max(self.size - self.first, 1)
    return self.first + (positions - self.first) % ring


@dataclasses.dataclass(frozen=True)
class Residual(Kind):
  """Keeps first and newest tokens exact, and all others as codes.

  Tokens move to codes by groups of positions, `first + g * group` and the
  following, when the last of a group has left the window. Each query of a call
  reads a token as the cache would hold it after that query's own token: however
  a text is cut into calls, the result is the same. `rewind` is exact, and
  refused below the window before which the last group was encoded.

  Attributes:
    kind: where codes go: `Dense`, `Paged` or `Ring`.
    first: tokens that are never encoded.
    window: newest tokens that are not encoded, the query itself included.
    group: neighbouring tokens that are encoded together. The ring of exact
      tokens has `window + group` slots.
  """

  kind: Kind = Dense()
  first: int = 0
  window: int = 128
  group: int = 32

  def __post_init__(self):
    check_fields(self, at_least={'first': 0, 'window': 0, 'group': 1})
    if self.window == 0 and self.group > 1:
      raise ValueError(
        f'Residual window=0 needs group=1, not group={self.group}: without a '
        'window each token is encoded at once, by itself.'
      )
    if self.slots is None:  # refuses other kinds
      self.kind.bind_groups(self.group, 0, self.group)

  @property
  def keeps_exact(self):
    return True

  @property
  def tiering(self) -> Tiering:
    """Which tokens are codes."""
    return Tiering(self.first, self.window, self.group)

  @property
  def exact(self) -> Exact:
    """The kind of the exact tokens."""
    ring = self.window + self.group if self.window else 0
    return Exact(self.first, slots=max(self.first + ring, 1))

  @property
  def name(self):
    return f'residual {self.kind.name}'

  @property
  def chunk(self):
    return 1

  @property
  def piece(self):
    return self.kind.chunk

  @property
  def limit(self):
    return None if self.kind.limit is None else self.slots

  @property
  def row_slots(self):
    return self.kind.row_slots + self.exact.row_slots

  def bind(self, capacity):
    if self.slots:
      return self
    exact = self.first + self.window
    kind = self.kind.bind_groups(capacity, exact, self.group)
    return dataclasses.replace(self, kind=kind, slots=capacity)

  def split(self, parts):
    if parts > 1:
      raise ValueError(
        f'{type(self).__name__} moves groups of tokens between slots, so no '
        'mesh can split its slots. Use rules without slots=: split rows and '
        'heads.'
      )
    return self

  def visible_through(self, visibility):
    return self.kind.visible_through(visibility)

  def leaf_axes(self, batch, heads):
    return self.kind.leaf_axes(batch, heads)

  def stream_spec(self, batch, heads, encoded, exact):
    return Tiers(
      self.kind.stream_spec(batch, heads, encoded, None),
      self.exact.stream_spec(batch, heads, exact, None),
    )

  def tiers(self, book, store, length):
    book = book or Tiers(None, None)
    moved = None if length is None else self.moved(length)
    exact_length = length
    if length is not None and not self.window:
      exact_length = jnp.minimum(length, self.first)
    coded = {name: stream.coded for name, stream in store.items()}
    exact = {name: stream.exact for name, stream in store.items()}
    return (
      Tier(self.kind, book.coded, coded, moved),
      Tier(self.exact, book.exact, exact, exact_length),
    )

  def join(self, stores):
    coded, exact = stores
    return {name: Tiers(coded[name], exact[name]) for name in coded}

  def moved(self, length: jax.Array) -> jax.Array:
    """Returns how many tokens of rows with `length` tokens are codes."""
    return self.tiering.count_codes(length)

  def book(self, batch, heads):
    return Tiers(self.kind.book(batch, heads), self.exact.book(batch, heads))

  def has_room(self, book, length, count):
    moved = self.moved(length)
    return self.kind.has_room(
      book.coded, moved, self.moved(length + count) - moved
    )

  def place(self, book, length, positions):
    batch, tokens = positions.shape
    after = length + jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    start, end = self.moved(length)[:, None], self.moved(after)[:, None]
    most = (tokens + self.group - 1) // self.group * self.group
    steps = jnp.arange(most, dtype=jnp.int32)[None, :]
    due = start + steps
    coded, slots = self.kind.place(
      book.coded, self.moved(length), jnp.where(due < end, due, EMPTY)
    )
    exact, exact_slots = self.exact.place(book.exact, length, positions)
    exact = self._without_coded(exact, after)
    index = positions - self.first - start
    is_due = (positions >= 0) & (index >= 0) & (index < most)
    outside = most + jnp.arange(tokens, dtype=jnp.int32)
    return Tiers(coded, exact), TierSlots(
      exact=exact_slots,
      due=self.exact.recent(self.first + due)[:, None],
      new=jnp.where(is_due, index, outside)[:, None],
      coded=slots,
    )

  def _without_coded(self, book: Book, length: jax.Array) -> Book:
    """Returns the book of exact tokens without those that are codes."""
    positions = book.positions
    end = self.first + self.moved(length)[:, None, None]
    is_code = (positions >= self.first) & (positions < end)
    exact = jnp.where(is_code, EMPTY, positions)
    return dataclasses.replace(book, positions=exact)

  def move(self, store, new, slots, encode):
    coded, exact = self.tiers(None, store, None)

    def gather(leaf, x):
      return write_rows(read_rows(leaf, slots.due), x, slots.new)

    codes = encode(jax.tree.map(gather, exact.store, new))
    codes = self.kind.write(coded.store, codes, slots.coded)
    return self.join([codes, exact.store])

  def write(self, store, new, slots):
    coded, exact = self.tiers(None, store, None)
    written = self.exact.write(exact.store, new, slots.exact)
    return self.join([coded.store, written])

  def views(self, book, store, length):
    coded, exact = self.tiers(book, store, length)
    views = self.kind.views(coded.book, coded.store, coded.length)
    codes = tuple(
      dataclasses.replace(
        view.from_position(self.first), shown_to=self.tiering.is_code
      )
      for view in views
    )
    views = self.exact.views(exact.book, exact.store, length)
    return codes + self._exact(views)

  def fresh_views(self, new, positions):
    return self._exact(super().fresh_views(new, positions))

  def _exact(self, views):
    return tuple(
      dataclasses.replace(view, is_exact=True, shown_to=self.tiering.is_exact)
      for view in views
    )

  def views_before_write(self, old, new, store):
    book = Tiers(new[0].coded, old[0].exact)
    return self.views(book, store, new[1])

  def shortest_rewind(self, book, length):
    moved = self.moved(length)
    lowest = self.kind.shortest_rewind(book.coded, moved)
    lowest = jnp.where(lowest > 0, self.first + lowest, 0)
    if self.window:  # the tokens of the last group are no longer exact
      exact = jnp.where(moved > 0, self.first + moved + self.window, 0)
      lowest = jnp.maximum(lowest, exact)
    return lowest

  def rewind(self, book, before, after):
    change = self.kind.rewind(book.coded, self.moved(before), self.moved(after))
    exact = self.exact.rewind(book.exact, before, after).book
    return change._replace(book=Tiers(change.book, exact))

  def needs_no_copy(self, book, length):
    return self.kind.needs_no_copy(book.coded, self.moved(length))

  def after_gather(self, book, length):
    change = self.kind.after_gather(book.coded, self.moved(length))
    exact = self.exact.after_gather(book.exact, length).book
    return change._replace(book=Tiers(change.book, exact))

  def copy_pages(self, store, moves):
    coded, exact = self.tiers(None, store, None)
    copied = self.kind.copy_pages(coded.store, moves)
    return self.join([copied, exact.store])

  def offset_pages(self, book, pages):
    return book.replace(coded=self.kind.offset_pages(book.coded, pages))
