"""Arrays of scalar numbers, which a traced tensor consists of.

Every scalar that a program computes gets a number once. A tensor is an array
of such numbers, so reshapes, transposes, broadcasts, slices, concatenations
and masks by a constant move numbers and make none. A view consists of the
same scalars as what it views, whichever axis holds the positions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
CONST = -1  # The number of every scalar that does not depend on the input.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One traced array: numbers where it depends on the input, else values.

  `offset` is a constant that was added to a data scalar on its way. A large
  negative offset marks a score that an additive mask hides.
  """

  ids: Array  # int64, the tensor's shape; CONST where constant
  const: Any  # the tensor's shape and dtype; meaningful where CONST
  offset: Array | None = None  # float64, the tensor's shape

  @property
  def shape(self) -> Shape:
    return self.ids.shape

  @property
  def is_const(self) -> Array:
    return self.ids == CONST

  @functools.cached_property
  def fixed(self) -> bool:
    """Returns whether nothing in this tensor depends on the input."""
    return bool(np.all(self.ids == CONST))

  def moved(self, move: Any) -> 'Tensor':
    """Applies one data movement to numbers, values and offsets."""
    offset = None if self.offset is None else move(self.offset)
    return Tensor(move(self.ids), move(self.const), offset)


Tensors = Sequence[Tensor]


def constant(value: Any) -> Tensor:
  """Returns a tensor that does not depend on the input."""
  return Tensor(np.full(np.shape(value), CONST, np.int64), value)


def data(ids: Array, dtype: Any) -> Tensor:
  """Returns a tensor that consists of the scalars `ids`."""
  return Tensor(ids, np.zeros(ids.shape, dtype))


class Table:
  """For every scalar, when it is known, what makes it and its bytes.

  The columns double when they are full, so that adding n scalars costs O(n).
  """

  def __init__(self) -> None:
    self.size = 0
    self._columns = np.zeros((3, 1 << 14), np.int32)

  def add(self, available: Array, maker: int, itemsize: int) -> Array:
    """Numbers new scalars, one for each entry of `available` (flat)."""
    start = self.size
    self.size += available.size
    while self.size > self._columns.shape[1]:
      blank = np.zeros_like(self._columns)
      self._columns = np.concatenate([self._columns, blank], 1)
    self._columns[0, start : self.size] = available
    self._columns[1, start : self.size] = maker
    self._columns[2, start : self.size] = itemsize
    return np.arange(start, self.size)

  @property
  def available(self) -> Array:
    """Returns [scalars] the last position that each scalar depends on."""
    return self._columns[0, : self.size]

  @property
  def maker(self) -> Array:
    """Returns [scalars] the operation that makes each, -1 for the input."""
    return self._columns[1, : self.size]

  @property
  def itemsize(self) -> Array:
    """Returns [scalars] the bytes of each scalar."""
    return self._columns[2, : self.size]


def distinct(ids: Array) -> Array:
  """Returns `np.unique(ids)`, faster where the numbers are close together."""
  if not ids.size:
    return np.zeros(0, np.int64)
  first = int(ids.min())
  span = int(ids.max()) - first + 1
  if span > 8 * ids.size:
    return np.unique(ids)
  present = np.zeros(span, bool)
  present[ids - first] = True
  return np.flatnonzero(present) + first


def lookup(attribute: Array, ids: Array) -> Array:
  """Returns `attribute` of every scalar in `ids`, -1 for constants."""
  # Constants have no entry: any index serves where its value is not used.
  return np.where(ids == CONST, -1, attribute[np.maximum(ids, 0)])
