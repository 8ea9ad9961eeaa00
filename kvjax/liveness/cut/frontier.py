"""Ways to remember, from the fewest bytes to the fewest FLOPs redone."""

import collections
from collections.abc import Sequence

from kvjax.liveness.cut import min_cut
from kvjax.liveness.cut.names import Labels
from kvjax.liveness.report import Point
from kvjax.liveness.verdict import Analysis


def find_points(analysis: Analysis) -> tuple[Point, ...]:
  """Returns the optima at every price of a FLOP; the last redoes nothing.

  They are the corners of the convex hull of all ways to remember.
  """
  last = Point(
    sort_kept_names(analysis, analysis.cut, analysis.names),
    analysis.cut.bytes_per_token,
    analysis.cut.flops_per_token,
    analysis.cut.state_bytes,
  )
  cuts = min_cut.find_corners(analysis.whole, analysis.absorption.price)
  labels = Labels(analysis.trace, analysis.whole)
  points = [_point(analysis, cut, labels) for cut in cuts]
  # The cut at zero recomputation leaves out what long streams are made of, and
  # may so be smaller than corners of the whole past.
  return (*(p for p in points if _size(p) < _size(last)), last)


def sort_kept_names(
  analysis: Analysis, cut: min_cut.Cut, names: Sequence[str]
) -> tuple[str, ...]:
  """Returns what a cut keeps, in the order in which the program names it."""
  kept = dict.fromkeys(names[i] for i in cut.kept)
  order = list(analysis.trace.names)
  rank = lambda n: order.index(n) if n in order else len(order)
  return tuple(sorted(kept, key=rank))


def _point(analysis: Analysis, cut: min_cut.Cut, labels: Labels) -> Point:
  price = analysis.absorption.price
  names = labels.name_nodes(cut)
  absorbed = dict.fromkeys(names[i] for i in cut.redone if i in price)
  return Point(
    _number_names(analysis, cut, names, labels.layers),
    cut.bytes_per_token,
    cut.flops_per_token,
    cut.state_bytes,
    tuple(f'absorption of {name}' for name in absorbed),
  )


def _number_names(
  analysis: Analysis,
  cut: min_cut.Cut,
  names: Sequence[str],
  layers: Sequence[int],
) -> tuple[str, ...]:
  """Returns names of what is kept; numbered where only some layers keep it.

  A name used in every layer but kept in the first and the third alone is
  written k.0, k.2.
  """
  all_layers = collections.defaultdict(set)
  kept_layers = collections.defaultdict(set)
  for name, layer in zip(names, layers, strict=True):
    all_layers[name].add(layer)
  for i in cut.kept:
    kept_layers[names[i]].add(layers[i])
  out = []
  for name in sort_kept_names(analysis, cut, names):
    if len(kept_layers[name]) < len(all_layers[name]):
      out += [f'{name}.{layer}' for layer in sorted(kept_layers[name])]
    else:
      out.append(name)
  return tuple(out)


def _size(point: Point) -> tuple[float, int]:
  return point.bytes_per_token, point.state_bytes
