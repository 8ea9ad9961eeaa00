"""Records by kind, by group, and the statistics of a group."""

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting.blocks import cell

Record = Mapping[str, Any]


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
  """Returns the records whose `record` is `kind`."""
  return [record for record in records if record.get('record') == kind]


def grouped(
  records: Iterable[Record], key: Callable[[Record], Any]
) -> dict[Any, list[Record]]:
  """Returns records by their key, groups in order of appearance."""
  groups = collections.defaultdict(list)
  for record in records:
    groups[key(record)].append(record)
  return groups


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
  """Returns the median of repeats and half their range.

  Of none, and of repeats of which one is NaN, they are NaN and 0.
  """
  if not values or any(map(math.isnan, values)):
    return math.nan, 0.0
  return statistics.median(values), (max(values) - min(values)) / 2


def with_spread(median: float, spread: float) -> str:
  """Returns both numbers, rounded to the second digit of the spread.

  Without a spread, or where one of them is not finite, they are as in a table.
  """
  if not spread:
    return cell(median)
  if not math.isfinite(median + spread):
    return f'{cell(median)} ± {cell(spread)}'
  first = int(f'{spread:.1e}'.partition('e')[2])  # place of its first digit
  decimals = max(0, 1 - first)
  return f'{median:,.{decimals}f} ± {spread:,.{decimals}f}'
