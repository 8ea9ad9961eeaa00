"""Ways to remember, from what costs least bytes to what redoes least."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvjax.liveness import budget, labels, report
from kvjax.liveness import cut as cutting

if TYPE_CHECKING:
  from kvjax.liveness import analysis

_SOLVES = 2000  # Minimum cuts of one node that a frontier is worth.


def frontier(verdict: 'analysis.Verdict') -> tuple[report.Point, ...]:
  """The optima over all of the past, up to the one that redoes nothing."""
  whole, last = verdict.whole, _last(verdict)
  solves = _SOLVES // max(len(whole.nodes), 1)
  cuts = budget.front(whole, verdict.absorption.price, solves)
  points = [_point(verdict, cut) for cut in cuts]
  return (*(p for p in points if _size(p) < _size(last)), last)


def equals(
    verdict: 'analysis.Verdict', front: Sequence[report.Point]
) -> tuple[report.Point, ...]:
  """Points no larger than the last that keep something else in its place.

  For every kept name, of the cuts without it and no larger the one that redoes
  least: the key before its rotation, say. They are beaten by the front, and
  good for what it does not price: positions that change in the cache.
  """
  whole, price = verdict.whole, verdict.absorption.price
  base = cutting.cheapest(whole, None, price)
  names = labels.label(verdict.trace, whole, base)
  out: dict[tuple[str, ...], report.Point] = {p.names: p for p in front}
  for name in dict.fromkeys(names[i] for i in base.kept):
    lost = frozenset(i for i in base.kept if names[i] == name)
    cuts = budget.front(whole, price, _SOLVES // len(names), lost)
    points = [_point(verdict, cut) for cut in cuts]
    for point in [p for p in points if _size(p) <= _size(front[-1])][-1:]:
      out.setdefault(point.names, point)
  return tuple(out.values())[len({p.names for p in front}) :]


def kept_names(
    verdict: 'analysis.Verdict', cut: cutting.Cut, names: Sequence[str]
) -> tuple[str, ...]:
  """What a cut keeps, in the order in which the program names it."""
  found = dict.fromkeys(names[i] for i in cut.kept)
  order = list(verdict.trace.names)
  rank = lambda n: order.index(n) if n in order else len(order)
  return tuple(sorted(found, key=rank))


def _last(verdict: 'analysis.Verdict') -> report.Point:
  cut = verdict.cut
  return report.Point(
      kept_names(verdict, cut, verdict.names),
      cut.bytes_per_token,
      cut.flops_per_token,
      cut.state_bytes,
  )


def _point(verdict: 'analysis.Verdict', cut: cutting.Cut) -> report.Point:
  """A cut of the whole past."""
  price = verdict.absorption.price
  names = labels.label(verdict.trace, verdict.whole, cut)
  used = dict.fromkeys(names[i] for i in cut.redone if i in price)
  return report.Point(
      kept_names(verdict, cut, names),
      cut.bytes_per_token,
      cut.flops_per_token,
      cut.state_bytes,
      tuple(f'absorption of {name}' for name in used),
  )


def _size(point: report.Point) -> tuple[int, int]:
  return point.bytes_per_token, point.state_bytes
