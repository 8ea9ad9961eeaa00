"""The model of a cache: a list of token ids a row, and what follows from it.

Values are immutable. A method returns the rows after an operation, or None
where the operation must be refused.
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

from tests.stateful.pages import Pages


@dataclasses.dataclass(frozen=True)
class Keeps:
  """How long a store keeps tokens.

  Attributes:
    slots: tokens that fit before one is forgotten; None if none ever is.
    back: tokens that a longer row can take back.
  """

  slots: int | None = None
  back: int = 0

  def earliest(self, length: int) -> int:
    """Returns the smallest length to which a row of that length goes back."""
    if self.slots is None or length <= self.slots:
      return 0
    return length - self.back


@dataclasses.dataclass(frozen=True)
class Rows:
  """What a cache should remember of B rows.

  Attributes:
    limit: most tokens a row; None for any number.
    keeps: one a store.
    tokens: ids of each row.
    low: the smallest length to which each row can go back.
    lost: rows that were given a token that did not fit.
    pages: of a pool; None without one.
  """

  limit: int | None
  keeps: tuple[Keeps, ...]
  tokens: tuple[tuple[int, ...], ...]
  low: tuple[int, ...]
  lost: tuple[bool, ...]
  pages: Pages | None = None

  @property
  def lengths(self) -> list[int]:
    return [len(row) for row in self.tokens]

  def extend(self, new: Sequence[Sequence[int]]) -> Self | None:
    """Returns the rows with new tokens; None if one row has no room."""
    counts = [len(row) for row in new]
    return self._add(new) if all(self._fits(counts)) else None

  def step(self, new: Sequence[Sequence[int]]) -> Self:
    """Returns the rows with new tokens where they fit, and flags elsewhere."""
    fits = self._fits([len(row) for row in new])
    rows = self._add([x if ok else () for x, ok in zip(new, fits, strict=True)])
    lost = tuple(a or not b for a, b in zip(self.lost, fits, strict=True))
    return dataclasses.replace(rows, lost=lost)

  def rewind(self, lengths: Sequence[int]) -> Self | None:
    for low, length, have in zip(self.low, lengths, self.lengths, strict=True):
      if not low <= length <= have:
        return None
    pages = self.pages and self.pages.settle(lengths)
    if self.pages and not pages:
      return None
    return dataclasses.replace(
      self,
      tokens=tuple(
        row[:length] for row, length in zip(self.tokens, lengths, strict=True)
      ),
      lost=(False,) * len(lengths),
      pages=pages,
    )

  def take(self, rows: Sequence[int]) -> Self | None:
    if not all(0 <= row < len(self.tokens) for row in rows):
      return None
    lengths = [len(self.tokens[row]) for row in rows]
    pages = self.pages and self.pages.take(rows).settle(lengths)
    if self.pages and not pages:
      return None
    return dataclasses.replace(
      self,
      tokens=tuple(self.tokens[row] for row in rows),
      low=tuple(self.low[row] for row in rows),
      lost=tuple(self.lost[row] for row in rows),
      pages=pages,
    )

  def join(self, other: 'Rows') -> Self:
    pages = None
    if self.pages and other.pages:
      pages = self.pages.join(other.pages)
    return dataclasses.replace(
      self,
      tokens=self.tokens + other.tokens,
      low=self.low + other.low,
      lost=self.lost + other.lost,
      pages=pages,
    )

  def _fits(self, counts: Sequence[int]) -> list[bool]:
    """Returns which rows have room for all of their new tokens."""
    fits = [
      self.limit is None or not count or have + count <= self.limit
      for have, count in zip(self.lengths, counts, strict=True)
    ]
    if self.pages:
      admitted = self.pages.admits(self.lengths, self._after(counts, fits))
      fits = [a and b for a, b in zip(fits, admitted, strict=True)]
    return fits

  def _after(self, counts, fits) -> list[int]:
    return [
      have + count * ok
      for have, count, ok in zip(self.lengths, counts, fits, strict=True)
    ]

  def _add(self, new: Sequence[Sequence[int]]) -> Self:
    tokens = tuple(
      (*row, *more) for row, more in zip(self.tokens, new, strict=True)
    )
    after = [len(row) for row in tokens]
    low = tuple(
      max(low, *(k.earliest(length) for k in self.keeps)) if more else low
      for low, length, more in zip(self.low, after, new, strict=True)
    )
    pages = self.pages and self.pages.grow(self.lengths, after)
    return dataclasses.replace(self, tokens=tokens, low=low, pages=pages)
