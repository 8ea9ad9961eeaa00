"""What a score function may look at: one layer's tokens, slot by slot."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.caches.slots import EMPTY
from kvjax.context import target
from kvjax.streams.view import View

BLOCK = 128  # slots, or queries, that are looked at together

# Streams as they are stored, and what makes keys and values of a block.
Part = tuple[View, Callable[[Any], tuple[jax.Array, jax.Array]]]


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
    parts: keys and values of the slots, one part after another.
    read_weights: what `weights` returns.
    read_queries: `(future, start, size)` -> what `queries` returns, of that
      many tokens of the call.
  """

  positions: jax.Array
  length: jax.Array
  before: jax.Array
  is_prompt: jax.Array
  tokens: int
  total: Any
  parts: tuple[Part, ...]
  read_weights: Callable[[], jax.Array]
  read_queries: Callable[[int, Any, int], tuple[jax.Array, jax.Array]]

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
    key that is stored in several streams (MLA) are joined. All slots at once
    are as large as a layer's keys; `for_each` and `total_of` read block by
    block.
    """
    return self._whole(0)

  def values(self) -> jax.Array:
    """Returns float32 `[B, K, S, E]`, 0 where there is no token."""
    return self._whole(1)

  def for_each(self, function: Callable[..., Any]) -> Any:
    """Returns what a function makes of each slot, arrays `[B, K, ..., S]`.

    Args:
      function: keys `[B, K, block, H]` and values of some slots, as `keys` and
        `values` return them -> arrays whose last axis is those slots.
    """
    results = [
      _map_blocks(part, positions, function)
      for part, positions in self._parts()
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *results)

  def total_of(self, function: Callable[..., Any]) -> Any:
    """Returns the sum over blocks of slots of what a function makes of each.

    Args:
      function: keys and values of some slots, 0 where there is no token ->
        arrays of any shape.
    """
    return jax.tree.map(
      lambda *x: sum(x),
      *(_sum_blocks(part, at, function) for part, at in self._parts()),
    )

  def in_order(self, start: Any, size: int) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values of `size` tokens from the `start`-th on.

    In order of position; 0 beyond the last token.
    """
    slots = self.positions.shape[-1]
    at = start + jnp.arange(size, dtype=jnp.int32)
    chosen = jnp.take(self._order(), jnp.minimum(at, slots - 1), axis=-1)
    exists = (at < slots)[None, None]
    first, keys, values = 0, [], []
    for (view, read), positions in self._parts():
      here = (chosen >= first) & (chosen < first + view.slots)
      index = jnp.where(here, chosen - first, 0)
      taken = jax.tree.map(lambda x, i=index: _along_slots(x, i), view.leaves)
      is_token = here & (_along_slots(positions, index) != EMPTY) & exists
      for x, parts in zip(read(taken), (keys, values), strict=True):
        parts.append(_cleared(x, is_token))
      first += view.slots
    # A token is in one part, and 0 in the others.
    return functools.reduce(jnp.add, keys), functools.reduce(jnp.add, values)

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
    return self.read_queries(future, 0, self.tokens)

  def total_of_queries(
    self, function: Callable[..., Any], future: int = 0
  ) -> Any:
    """Returns the sum over blocks of queries of what a function makes of each.

    Args:
      function: queries and positions as `queries` returns them, of some tokens
        -> arrays of any shape.
      future: as in `queries`.
    """

    def of_block(i, size):
      start = jnp.minimum(i * size, self.tokens - size)
      queries, positions = self.read_queries(future, start, size)
      # The last block overlaps the one before.
      is_new = start + jnp.arange(size, dtype=jnp.int32)[None] >= i * size
      return function(queries, jnp.where(is_new, positions, EMPTY))

    return _sum_over_blocks(self.tokens, of_block)

  def by_position(self, x: jax.Array) -> jax.Array:
    """Returns `x [B, K, S, ...]` with slots in order of position, empty last.

    The order is that of each row, and of each head where heads keep their own.
    """
    return _along_slots(x, self._order())

  def by_slot(self, x: jax.Array) -> jax.Array:
    """Undoes `by_position`."""
    return _along_slots(x, jnp.argsort(self._order(), axis=-1))

  def _order(self) -> jax.Array:
    # Without a sign, the position of an empty slot is the largest.
    return jnp.argsort(self.positions.astype(jnp.uint32), axis=-1)

  def _parts(self) -> list[tuple[Part, jax.Array]]:
    """Returns each part with the positions of its slots."""
    sizes = [view.slots for view, _ in self.parts]
    cuts = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    positions = jnp.split(self.positions, cuts, axis=-1)
    return list(zip(self.parts, positions, strict=True))

  def _whole(self, index: int) -> jax.Array:
    blocks = [read(view.fetch(0, view.slots)[0]) for view, read in self.parts]
    x = jnp.concatenate([block[index] for block in blocks], axis=2)
    return _cleared(x, self.is_token)


def _map_blocks(part: Part, positions: jax.Array, function: Any) -> Any:
  """Returns `Evidence.for_each` of one part."""

  def of_block(start, size):
    return function(*_read(part, positions, start, size))

  slots = part[0].slots
  size = _block_size(slots)
  if size == slots:
    return of_block(0, size)
  shapes = jax.eval_shape(lambda: of_block(0, size))
  empty = jax.tree.map(
    lambda x: jnp.zeros(x.shape[:-1] + (slots,), x.dtype), shapes
  )

  def body(i, found):
    start = jnp.minimum(i * size, slots - size)
    return jax.tree.map(
      lambda all_, x: jax.lax.dynamic_update_slice_in_dim(
        all_, x, start, axis=-1
      ),
      found,
      of_block(start, size),
    )

  return jax.lax.fori_loop(0, -(-slots // size), body, empty)


def _sum_blocks(part: Part, positions: jax.Array, function: Any) -> Any:
  """Returns `Evidence.total_of` of one part."""
  slots = part[0].slots

  def of_block(i, size):
    start = jnp.minimum(i * size, slots - size)
    repeated = start + jnp.arange(size, dtype=jnp.int32) < i * size
    return function(*_read(part, positions, start, size, repeated[None, None]))

  return _sum_over_blocks(slots, of_block)


def _sum_over_blocks(count: int, of_block: Callable[[Any, int], Any]) -> Any:
  size = _block_size(count)
  if size == count:
    return of_block(0, size)
  first = jax.eval_shape(lambda: of_block(0, size))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
  return jax.lax.fori_loop(
    0,
    -(-count // size),
    lambda i, total: jax.tree.map(jnp.add, total, of_block(i, size)),
    zero,
  )


def _block_size(count: int) -> int:
  # Elsewhere one large operation is faster than many small ones.
  return min(BLOCK, count) if target() == 'cpu' else count


def _read(
  part: Part, positions: jax.Array, start: Any, size: int, repeated: Any = False
) -> tuple[jax.Array, jax.Array]:
  """Returns keys and values of slots, 0 without a token or if repeated."""
  view, read = part
  is_token = jax.lax.dynamic_slice_in_dim(positions, start, size, axis=2)
  is_token = (is_token != EMPTY) & ~jnp.asarray(repeated)
  keys, values = read(view.fetch(start, size)[0])
  return _cleared(keys, is_token), _cleared(values, is_token)


def _cleared(x: jax.Array, is_token: jax.Array) -> jax.Array:
  # An empty slot may hold NaN.
  return jnp.where(is_token[..., None], x.astype(jnp.float32), 0.0)


def _along_slots(x: jax.Array, order: jax.Array) -> jax.Array:
  shape = x.shape[:2] + order.shape[2:]
  order = jnp.broadcast_to(order, shape)
  order = order.reshape(shape + (1,) * (x.ndim - 3))
  return jnp.take_along_axis(x, order, axis=2)
