"""The ring: the last tokens only, slot = position modulo slots.

A modulo, never a shift: nothing moves, so keys keep the rotation and every
slot the absolute position they came with (Mistral 7B, arXiv 2310.06825).
"""

import dataclasses

import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.kind import Kind
from kvjax.caches.slots import first_position


@dataclasses.dataclass(frozen=True)
class Ring(Kind):
  """Keeps what a window of `window` tokens can see.

  Attributes:
    window: a query sees itself and the `window - 1` tokens before it.
    slack: slots beyond the window. They let `slack + 1` tokens be written
      before any is read, and as many be taken back by `rewind`.
  """

  window: int = 0
  slack: int = 0

  def __post_init__(self):
    # A window counts the query itself.
    check_fields(self, at_least={'window': 1, 'slack': 0, 'slots': 1})

  def bind(self, capacity):
    if self.slots:
      return self
    return dataclasses.replace(
      self, slots=min(self.window, capacity) + self.slack
    )

  def bind_groups(self, capacity, exact, group):
    # A piece of `group` tokens and more may be written before it is read.
    kept = min(self.window, capacity)
    slots = -(-(kept + self.slack + group) // group) * group
    return dataclasses.replace(self, slots=slots, slack=slots - kept)

  @property
  def limit(self):
    # A ring shorter than its window cannot forget: it is full like any other.
    return (
      self.size - self.slack if self.size < self.window + self.slack else None
    )

  @property
  def chunk(self):
    return None if self.limit else self.slack + 1

  def visible_through(self, visibility):
    if visibility.sink_tokens:
      raise ValueError(
        f'A ring forgets the first tokens, and a query of this layer sees '
        f'sink_tokens={visibility.sink_tokens} of them. Use Sinks(sinks='
        f'{visibility.sink_tokens}, window={self.window}).'
      )
    return visibility.narrow(self.window)

  def slot_of(self, positions):
    last = jnp.max(positions, axis=-1, keepdims=True)
    kept = (positions >= 0) & (positions > last - self.size)
    return jnp.where(kept, positions % self.size, self.outside(positions))

  def shortest_rewind(self, book, length):
    lowest = first_position(book.positions)
    return jnp.where(lowest == 0, 0, lowest + self.window - 1)
