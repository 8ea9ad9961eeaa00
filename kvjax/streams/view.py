"""What attention sees of a cache: blocks of slots and their positions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.native import write_narrow
from kvjax.streams.stored import Stored

Streams = dict[str, Any]
"""Arrays `[B, K, S, H]`, or stored leaves of them, by the name of a stream."""

LAST = 2**31 - 1  # no position beyond it


@dataclasses.dataclass(frozen=True)
class View:
  """Slots that attention may read, block by block. Lives inside one trace.

  Attributes:
    fetch: `(start, size)` -> streams `[B, K, size, H]` by name and positions
      `[B, 1 | K, size]` of those slots, -1 where a slot holds no token.
    slots: number of slots, static.
    filled: no slot from this index on holds a token (int32 scalar).
    page: blocks start and end at multiples of this.
    ordered: slot and position are the same number and no slot up to a query's
      own position is empty, so that a query at p needs no slot beyond p.
    query_limit: keys of this view are scored by the query rotated to at most
      this position (renumbered sinks); None for the query's own position.
    first: the smallest position that the view shows.
    last: the largest position that the view shows.
    leaves: what `fetch` slices, whole and encoded, where it only does that.
    maps: what was done to the slices since: pairs as `map_with_positions`
      takes them.
    positions: of all slots, shown or not, `[B, 1 | K, S]`, with `leaves`.
    table: `[B, S / page]`, where leaves `[K, pages, page, ...]` and positions
      `[1, pages, page]` are pools: the page of each stretch of slots, or -1.
    stored: the streams as they are stored, if `map` was given that.
    stripe_filled: of slots in stripes, one a device: no slot of a stripe from
      this index on holds a token. None for slots in order.
    is_fresh: its tokens are in no cache, and every device has all of them.
    is_exact: its tokens wait to be encoded: they are stored as
      `Codec.exact` says.
    shown_to: `(query positions, slot positions)` -> bool, which of several
      queries see a slot, beyond the mask; None for all. A query that is alone
      in its call sees all.
  """

  fetch: Callable[[Any, int], tuple[Streams, jax.Array]]
  slots: int
  filled: Any
  page: int = 1
  ordered: bool = False
  query_limit: int | None = None
  first: int = 0
  last: int = LAST
  leaves: Streams | None = None
  positions: jax.Array | None = None
  table: jax.Array | None = None
  stored: dict[str, Stored | None] | None = None
  maps: tuple[tuple[Any, Any], ...] = ()
  stripe_filled: Any = None
  is_fresh: bool = False
  is_exact: bool = False
  shown_to: Callable[[jax.Array, jax.Array], jax.Array] | None = None

  def map(
    self,
    f: Callable[[Streams], Streams],
    stored: Callable[[Streams], dict[str, Stored | None]] | None = None,
  ) -> 'View':
    """Returns this view with `f` applied to each fetched block of streams.

    `stored` says of whole leaves what `f` makes of blocks; without it no
    kernel can read the result in place.
    """
    return self.map_with_positions(lambda streams, _: f(streams), stored)

  def map_with_positions(
    self,
    f: Callable[[Streams, jax.Array], Streams],
    stored: Callable[[Streams], dict[str, Stored | None]] | None = None,
  ) -> 'View':
    """Returns `map` of an `f` that is given positions `[B, 1 | K, size]` too.

    They are those of the slots of the block; -1 where there is no token.
    """

    def fetch(start, size):
      streams, positions = self.fetch(start, size)
      return f(streams, positions), positions

    in_place = None
    if stored is not None and self.leaves is not None and not self.maps:
      in_place = stored(self.leaves)
    maps = (*self.maps, (f, stored))
    return dataclasses.replace(self, fetch=fetch, maps=maps, stored=in_place)

  def only(
    self, first: int = 0, last: int = LAST, query_limit: int | None = None
  ) -> 'View':
    """Returns this view with only positions `first` to `last` in it."""

    def fetch(start, size):
      streams, positions = self.fetch(start, size)
      return streams, part.shown(positions)

    # All parts keep the same `positions`, which `shown` narrows. Positions of
    # each part would be one more array of slots a part.
    part = dataclasses.replace(self, fetch=fetch, first=first, last=last)
    return dataclasses.replace(part, query_limit=query_limit)

  def from_position(self, first: int) -> 'View':
    """Returns this view of slots whose positions are counted from `first`."""
    if not first:
      return self

    def count(positions):
      return jnp.where(positions >= 0, positions + first, -1)

    def fetch(start, size):
      streams, positions = self.fetch(start, size)
      return streams, count(positions)

    positions = None if self.positions is None else count(self.positions)
    return dataclasses.replace(self, fetch=fetch, positions=positions)

  def striped(self, filled: Any) -> 'View':
    """Returns this view of slots in stripes, each filled up to `filled`."""
    return dataclasses.replace(
      self, filled=self.slots, stripe_filled=filled, ordered=False
    )

  def over(
    self,
    leaves: Streams,
    positions: jax.Array,
    table: jax.Array | None,
    filled: Any,
  ) -> 'View':
    """Returns the same view of other arrays: of the part that a device holds.

    Args:
      leaves: in place of this view's own.
      positions: of their slots.
      table: of pages, if the view has one.
      filled: of these slots.
    """
    if table is None:
      view = contiguous_view(leaves, positions, filled, ordered=self.ordered)
    else:
      view = paged_view(leaves, positions, table, filled)
    view = view.only(self.first, self.last, self.query_limit)
    view = dataclasses.replace(view, shown_to=self.shown_to)
    for f, stored in self.maps:
      view = view.map_with_positions(f, stored)
    return view

  def shown(self, positions: jax.Array) -> jax.Array:
    """Returns positions, -1 for those that this view does not show."""
    if (self.first, self.last) == (0, LAST):
      return positions
    in_range = (positions >= self.first) & (positions <= self.last)
    return jnp.where(in_range, positions, -1)


def fresh_view(streams: Streams, positions: jax.Array) -> View:
  """Views tokens that are in no cache: streams `[B, K, T, H]`, `[B, T]`.

  Args:
    streams: by name, as a variant projects them.
    positions: int32, -1 where there is no token.
  """
  view = contiguous_view(streams, positions[:, None, :], positions.shape[1])
  return dataclasses.replace(view, is_fresh=True)


def contiguous_view(
  store: Streams,
  positions: jax.Array,
  filled: Any,
  *,
  ordered: bool = False,
) -> View:
  """Views leaves `[B, K, S, ...]` with positions `[B, 1 | K, S]`.

  Args:
    store: leaves by the name of a stream.
    positions: int32, the token of each slot; -1 for none.
    filled: slots, from the first, beyond which none holds a token.
    ordered: slot and position are the same number, as in a dense cache.
  """
  slots = positions.shape[2]
  # An entry of a leaf may serve several slots.
  sizes = jax.tree.map(lambda leaf: slots // leaf.shape[2], store)
  slices = jax.tree.map(_slicer, store)

  def fetch(start, size):
    def cut(slice_, n):
      return slice_(start if n == 1 else start // n, size // n)

    return jax.tree.map(cut, slices, sizes), _slice(positions, start, size)

  return View(
    fetch,
    slots,
    filled,
    page=max(jax.tree.leaves(sizes), default=1),
    leaves=store,
    positions=positions,
    ordered=ordered,
  )


def paged_view(
  store: Streams, positions: jax.Array, table: jax.Array, filled: Any
) -> View:
  """Views rows of pools `[K, pages, page, ...]` through a table.

  Args:
    store: pools by the name of a stream.
    positions: int32 `[1, pages, page]`; -1 for none.
    table: int32 `[B, n]`, page of each stretch of a row's slots; -1 for none.
    filled: slots of a row, from the first, beyond which none holds a token.
  """
  page = positions.shape[2]

  def fetch(start, size):
    pages = jax.lax.dynamic_slice_in_dim(
      table, start // page, size // page, axis=1
    )
    streams = jax.tree.map(lambda x: by_row(x, pages), store)
    return streams, positions_by_row(positions, pages)

  return View(
    fetch,
    table.shape[1] * page,
    filled,
    page,
    ordered=True,
    leaves=store,
    positions=positions,
    table=table,
  )


def by_row(pool: jax.Array, table: jax.Array) -> jax.Array:
  """Returns rows `[B, K, n page, ...]` of a pool, through a table `[B, n]`."""
  pages = jnp.moveaxis(pool[:, jnp.maximum(table, 0)], 1, 0)
  return jax.lax.collapse(pages, 2, 4)


def positions_by_row(pool: jax.Array, table: jax.Array) -> jax.Array:
  """Returns positions `[B, 1, n page]` of such rows; -1 where no page is."""
  has_page = jnp.repeat(table >= 0, pool.shape[2], axis=1)[:, None]
  return jnp.where(has_page, by_row(pool, table), -1)


def _slice(leaf: jax.Array, start: Any, size: int) -> jax.Array:
  if size == leaf.shape[2]:
    return leaf
  return jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=2)


def _slicer(leaf: jax.Array) -> Callable[[Any, int], jax.Array]:
  if write_narrow.slices_widely(leaf):
    return write_narrow.slicer(leaf, _slice)
  return lambda start, size: _slice(leaf, start, size)
