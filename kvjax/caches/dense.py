"""The dense cache: one slot a position, up to the capacity."""

import dataclasses

import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.kind import Kind


@dataclasses.dataclass(frozen=True)
class Dense(Kind):
  """Keeps every token. Overflow is refused, never clamped.

  Attributes:
    stripes: devices that share the slots of a row. Position p is on device
      `p % stripes`, so that all fill alike (Helix, arXiv 2507.07120).
  """

  stripes: int = 1

  def __post_init__(self):
    check_fields(self, at_least={'slots': 1, 'stripes': 1})

  @property
  def row_slots(self):
    return -(-self.size // self.stripes) * self.stripes

  def bind_groups(self, capacity, exact, group):
    slots = max((capacity - exact) // group, 1) * group
    return dataclasses.replace(self, slots=slots)

  def split(self, parts):
    return dataclasses.replace(self, stripes=parts)

  def slot_of(self, positions):
    stripe = self.row_slots // self.stripes
    slots = positions % self.stripes * stripe + positions // self.stripes
    return jnp.where(positions >= 0, slots, self.outside(positions))

  def views(self, book, store, length):
    if self.stripes == 1:
      return super().views(book, store, length)
    (view,) = super().views(book, store, length)
    filled = -(-jnp.max(length) // self.stripes)
    return (view.striped(filled),)
