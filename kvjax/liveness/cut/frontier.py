"""Ways to remember, from the fewest bytes to the fewest FLOPs redone."""

import collections
from collections.abc import Sequence

from kvjax.liveness.cut import min_cut
from kvjax.liveness.cut.min_cut import Cut
from kvjax.liveness.cut.names import Labels
from kvjax.liveness.report import Point
from kvjax.liveness.verdict import Analysis

Names = tuple[str, ...]


def find_points(analysis: Analysis) -> tuple[Point, ...]:
  """Returns the optima at every price of a FLOP; the last redoes nothing.

  They are the corners of the convex hull of all ways to remember.
  """
  names = sort_kept_names(analysis, analysis.cut, analysis.names)
  last = _point(analysis.cut, names)
  cuts = min_cut.find_corners(analysis.whole, analysis.absorption.price)
  labels = Labels(analysis.trace, analysis.whole)
  points = []
  for cut in cuts:
    names = labels.name_nodes(cut)
    absorbed = dict.fromkeys(
      names[i] for i in cut.redone if i in analysis.absorption.price
    )
    rewrites = tuple(f'absorption of {name}' for name in absorbed)
    numbered = _number_names(analysis, cut, names, labels.layers)
    points.append(_point(cut, numbered, rewrites))
  # The cut at zero recomputation leaves out what long streams are made of, and
  # may so be smaller than corners of the whole past.
  size = lambda point: (point.bytes_per_token, point.state_bytes)
  return (*(p for p in points if size(p) < size(last)), last)


def _point(cut: Cut, names: Names, rewrites: Names = ()) -> Point:
  return Point(
    names, cut.bytes_per_token, cut.flops_per_token, cut.state_bytes, rewrites
  )


def sort_kept_names(analysis: Analysis, cut: Cut, names: Names) -> Names:
  """Returns what a cut keeps, in the order in which the program names it."""
  kept = dict.fromkeys(names[i] for i in cut.kept)
  order = list(analysis.trace.names)
  rank = lambda n: order.index(n) if n in order else len(order)
  return tuple(sorted(kept, key=rank))


def _number_names(
  analysis: Analysis, cut: Cut, names: Names, layers: Sequence[int]
) -> Names:
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
