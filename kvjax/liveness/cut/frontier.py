"""Ways to remember, from what costs least bytes to what redoes least."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvjax.liveness import report
from kvjax.liveness.cut import budget, min_cut
from kvjax.liveness.cut import names as labelling

if TYPE_CHECKING:
  from kvjax.liveness import analysis


def frontier(
  verdict: 'analysis.Verdict',
) -> tuple[tuple[report.Point, ...], bool]:
  """The optima over all of the past, and whether none is missing.

  The last of them redoes nothing.
  """
  last = _last(verdict)
  cuts, complete = budget.front(verdict.whole, verdict.absorption.price)
  labels = labelling.Labels(verdict.trace, verdict.whole)
  points = [_point(verdict, cut, labels) for cut in cuts]
  return (*(p for p in points if _size(p) < _size(last)), last), complete


def equals(
  verdict: 'analysis.Verdict', front: Sequence[report.Point]
) -> tuple[report.Point, ...]:
  """Points no larger than the last that keep something else in its place.

  For every kept name, of the cuts without it and no larger the one that redoes
  least: the key before its rotation, say. They are beaten by the front, and
  good for what it does not price: positions that change in the cache.
  """
  whole, price = verdict.whole, verdict.absorption.price
  base = min_cut.cheapest(whole, None, price)
  labels = labelling.Labels(verdict.trace, whole)
  names = labels.of(base)
  most = min_cut.size(verdict.cut)
  out: dict[tuple[str, ...], report.Point] = {p.names: p for p in front}
  for name in dict.fromkeys(names[i] for i in base.kept):
    lost = frozenset(i for i in base.kept if names[i] == name)
    cut = budget.quickest(whole, price, lost, most)
    if cut is not None:
      point = _point(verdict, cut, labels)
      out.setdefault(point.names, point)
  return tuple(out.values())[len({p.names for p in front}) :]


def kept_names(
  verdict: 'analysis.Verdict', cut: min_cut.Cut, names: Sequence[str]
) -> tuple[str, ...]:
  """What a cut keeps, in the order in which the program names it."""
  found = dict.fromkeys(names[i] for i in cut.kept)
  order = list(verdict.trace.names)
  rank = lambda n: order.index(n) if n in order else len(order)
  return tuple(sorted(found, key=rank))


def _numbered(
  verdict: 'analysis.Verdict',
  cut: min_cut.Cut,
  names: Sequence[str],
  places: Sequence[int],
) -> tuple[str, ...]:
  """The same, with numbers of the places where a name is kept in some only.

  A name given in every layer is kept in the first and the third: k.0, k.2.
  """
  every, held = collections.defaultdict(set), collections.defaultdict(set)
  for name, place in zip(names, places, strict=True):
    every[name].add(place)
  for i in cut.kept:
    held[names[i]].add(places[i])
  out = []
  for name in kept_names(verdict, cut, names):
    some = len(held[name]) < len(every[name])
    out += [f'{name}.{p}' for p in sorted(held[name])] if some else [name]
  return tuple(out)


def _last(verdict: 'analysis.Verdict') -> report.Point:
  cut = verdict.cut
  return report.Point(
    kept_names(verdict, cut, verdict.names),
    cut.bytes_per_token,
    cut.flops_per_token,
    cut.state_bytes,
  )


def _point(
  verdict: 'analysis.Verdict', cut: min_cut.Cut, labels: labelling.Labels
) -> report.Point:
  """A cut of the whole past."""
  price = verdict.absorption.price
  names = labels.of(cut)
  used = dict.fromkeys(names[i] for i in cut.redone if i in price)
  return report.Point(
    _numbered(verdict, cut, names, labels.place),
    cut.bytes_per_token,
    cut.flops_per_token,
    cut.state_bytes,
    tuple(f'absorption of {name}' for name in used),
  )


def _size(point: report.Point) -> tuple[float, int]:
  return point.bytes_per_token, point.state_bytes
