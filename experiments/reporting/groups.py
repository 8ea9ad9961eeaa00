"""Records by kind, by group, and the statistics of a group."""

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
  """Returns the records whose `record` is `kind`."""
  return [record for record in records if record['record'] == kind]


def grouped(
  records: Iterable[Record], key: Callable[[Record], Any]
) -> dict[Any, list[Record]]:
  """Returns records by their key, groups in order of appearance."""
  groups = collections.defaultdict(list)
  for record in records:
    groups[key(record)].append(record)
  return groups


def median_and_half_range(values: Iterable[float]) -> tuple[float, float]:
  """Returns the median of repeats, and half the range over them."""
  values = list(values)
  return statistics.median(values), (max(values) - min(values)) / 2
