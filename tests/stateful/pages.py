"""Pages of a pool as lists: which page each row has, and how many are free."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Self


@dataclasses.dataclass(frozen=True)
class Pages:
  """Pages of each row; rows may share full pages, and never a partial one.

  Attributes:
    page: tokens a page.
    pool: pages of the pool.
    rows: ids of the pages of each row, in order of position.
    fresh: ids from here on name pages that no row has had.
  """

  page: int
  pool: int
  rows: tuple[tuple[int, ...], ...]
  fresh: int = 0

  @property
  def free(self) -> int:
    return self.pool - len({page for row in self.rows for page in row})

  def admits(self, before: Sequence[int], after: Sequence[int]) -> list[bool]:
    """Returns which rows get their pages: those that need fewest come first."""
    need = self._need(before, after)
    admitted, used = [False] * len(need), 0
    for row in sorted(range(len(need)), key=lambda row: need[row]):
      used += need[row]
      admitted[row] = used <= self.free
    return admitted

  def grow(self, before: Sequence[int], after: Sequence[int]) -> Self:
    """Returns the pages of rows that have room for their new tokens."""
    rows, fresh = [], self.fresh
    need = self._need(before, after)
    for row, count in zip(self.rows, need, strict=True):
      rows.append(row + tuple(range(fresh, fresh + count)))
      fresh += count
    return dataclasses.replace(self, rows=tuple(rows), fresh=fresh)

  def take(self, rows: Sequence[int]) -> Self:
    """Returns the pages of those rows; partial ones may be shared for now."""
    return dataclasses.replace(self, rows=tuple(self.rows[i] for i in rows))

  def settle(self, lengths: Sequence[int]) -> Self | None:
    """Returns the pages of rows of these lengths, no partial page shared.

    None where the pool has too few pages for the copies.
    """
    kept = [
      row[: -(-length // self.page)]
      for row, length in zip(self.rows, lengths, strict=True)
    ]
    owners = collections.Counter(page for row in kept for page in row)
    free, fresh, rows = self.pool - len(owners), self.fresh, []
    for row, length in zip(kept, lengths, strict=True):
      if length % self.page and owners[row[-1]] > 1:
        owners[row[-1]] -= 1
        row = (*row[:-1], fresh)
        free, fresh = free - 1, fresh + 1
      rows.append(row)
    if free < 0:
      return None
    return dataclasses.replace(self, rows=tuple(rows), fresh=fresh)

  def join(self, other: 'Pages') -> Self:
    """Returns the pages of both pools as one."""
    moved = tuple(
      tuple(page + self.fresh for page in row) for row in other.rows
    )
    return dataclasses.replace(
      self,
      pool=self.pool + other.pool,
      rows=self.rows + moved,
      fresh=self.fresh + other.fresh,
    )

  def _need(self, before, after) -> list[int]:
    return [
      -(-b // self.page) - -(-a // self.page)
      for a, b in zip(before, after, strict=True)
    ]
