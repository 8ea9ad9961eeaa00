"""Arrays of scalar identities: what a traced tensor is made of.

Every scalar that a program computes gets a number once. A tensor is an array
of such numbers, so reshapes, transposes, broadcasts, slices, concatenations
and masks by a constant move numbers about and make none: a view is the very
scalars it views, whatever axis the positions hide in.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

Array = np.ndarray
CONST = -1  # The identity of every scalar that does not depend on the input.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One traced array: identities where it depends on the input, else values.

  `offset` is a constant that was added to a data scalar on its way; a large
  negative one is how additive masks are told from scores.
  """

  ids: Array  # int64, the tensor's shape; CONST where constant
  const: Any  # the tensor's shape and dtype; meaningful where CONST
  offset: Array | None = None  # float64, the tensor's shape

  @property
  def shape(self) -> tuple[int, ...]:
    return self.ids.shape

  @property
  def is_const(self) -> Array:
    return self.ids == CONST

  @functools.cached_property
  def fixed(self) -> bool:
    """Whether nothing in this tensor depends on the input."""
    return bool(np.all(self.ids == CONST))

  def moved(self, move: Any) -> 'Tensor':
    """Applies one data movement to identities, values and offsets alike."""
    offset = None if self.offset is None else move(self.offset)
    return Tensor(move(self.ids), move(self.const), offset)


def constant(value: Any) -> Tensor:
  """A tensor that does not depend on the input."""
  return Tensor(np.full(np.shape(value), CONST, np.int64), value)


def data(ids: Array, dtype: Any) -> Tensor:
  """A tensor made of the scalars `ids` alone."""
  return Tensor(ids, np.zeros(ids.shape, dtype))


class Table:
  """Grows by blocks: for every scalar, when it is known and who made it."""

  def __init__(self) -> None:
    self.size = 0
    self._available = np.zeros(1 << 14, np.int32)
    self._maker = np.zeros(1 << 14, np.int32)
    self._bytes = np.zeros(1 << 14, np.int8)

  def add(self, available: Array, maker: int, itemsize: int) -> Array:
    """Numbers new scalars, one for each entry of `available` (flat)."""
    start, self.size = self.size, self.size + available.size
    while self.size > self._available.size:
      for name in ('_available', '_maker', '_bytes'):
        old = getattr(self, name)
        setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
    self._available[start : self.size] = available
    self._maker[start : self.size] = maker
    self._bytes[start : self.size] = itemsize
    return np.arange(start, self.size)

  @property
  def available(self) -> Array:
    """[scalars] the last position each one depends on."""
    return self._available[: self.size]

  @property
  def maker(self) -> Array:
    """[scalars] the number of the operation that makes it, -1 for inputs."""
    return self._maker[: self.size]

  @property
  def itemsize(self) -> Array:
    """[scalars] bytes."""
    return self._bytes[: self.size]


def distinct(ids: Array) -> Array:
  """`np.unique` of identities, which mostly lie close together."""
  if not ids.size:
    return np.zeros(0, np.int64)
  first = int(ids.min())
  span = int(ids.max()) - first + 1
  if span > 8 * ids.size:
    return np.unique(ids)
  there = np.zeros(span, bool)
  there[ids - first] = True
  return np.flatnonzero(there) + first


def lookup(attribute: Array, ids: Array) -> Array:
  """`attribute` of every scalar in `ids`, -1 for constants."""
  return np.where(ids == CONST, -1, attribute[np.maximum(ids, 0)])
