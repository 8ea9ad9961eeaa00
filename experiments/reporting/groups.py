"""Records by kind, by group, and the statistics of a group."""

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
