"""Attention sinks and a window (StreamingLLM, arXiv 2309.17453, section 3.2).

The first tokens stay for ever, and a ring holds the recent ones. Positions are
an explicit choice: kept as they were, or renumbered inside the cache as the
paper does. Renumbering needs no unrotated keys, because rotations compose: the
products are the same if the sink slots are scored by a query rotated to
`min(p, sinks + window - 1)` and the ring by the query at p.
"""

import dataclasses

import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.kind import Kind
from kvjax.caches.slots import first_position
from kvjax.streams.view import View, fresh_view


@dataclasses.dataclass(frozen=True)
class Sinks(Kind):
  """Keeps the first `sinks` tokens and a window of recent ones.

  Attributes:
    sinks: first tokens, never forgotten, seen beyond a layer's own window.
    window: recent tokens a query sees, itself included.
    slack: ring slots beyond the window, as in `Ring`.
    renumber: distances to the sinks are those inside the cache.
  """

  sinks: int = 4
  window: int = 0
  slack: int = 0
  renumber: bool = False

  def __post_init__(self):
    sizes = {'sinks': 1, 'window': 1, 'slack': 0, 'slots': 1}
    check_fields(self, at_least=sizes)

  def bind(self, capacity):
    if self.slots:
      return self
    sinks = max(min(self.sinks, capacity - 1), 1)
    recent = min(self.window, max(capacity - sinks, 1))
    slots = sinks + recent + self.slack
    return dataclasses.replace(self, sinks=sinks, slots=slots)

  @property
  def ring(self) -> int:
    """Slots of the ring."""
    return self.size - self.sinks

  @property
  def limit(self):
    whole = self.sinks + self.window + self.slack
    return self.size - self.slack if self.size < whole else None

  @property
  def chunk(self):
    return None if self.limit else self.slack + 1

  @property
  def rotates_queries(self):
    return self.renumber

  def visible_through(self, visibility):
    return visibility.narrow(self.window, self.sinks)

  def slot_of(self, positions):
    last = jnp.max(positions, axis=-1, keepdims=True)
    kept = (positions >= 0) & (
      (positions < self.sinks) | (positions > last - self.ring)
    )
    ring = self.sinks + (positions - self.sinks) % self.ring
    slots = jnp.where(positions < self.sinks, positions, ring)
    return jnp.where(kept, slots, self.outside(positions))

  def views(self, book, store, length):
    return self._split(*super().views(book, store, length))

  def fresh_views(self, new, positions):
    return self._split(fresh_view(new, positions))

  def _split(self, view: View) -> tuple[View, ...]:
    """Parts sinks from recent tokens where their queries differ."""
    if not self.renumber:
      return (view,)
    limit = self.sinks + self.window - 1
    sinks = view.only(last=self.sinks - 1, query_limit=limit)
    return sinks, view.only(first=self.sinks)

  def shortest_rewind(self, book, length):
    is_sink = book.positions < self.sinks
    oldest = first_position(jnp.where(is_sink, -1, book.positions))
    nothing_forgotten = oldest <= self.sinks
    return jnp.where(nothing_forgotten, 0, oldest + self.window - 1)
