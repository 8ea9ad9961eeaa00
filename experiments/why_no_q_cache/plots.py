"""Pictures of an analysis: how long a row is read, and across what."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.reporting.plots import COLOURS, FAINT, INK, figure, png
from kvjax.liveness import Dataflow, Point, Row

KEPT = COLOURS[0]
GONE = COLOURS[5]
PALE = '#aab4c0'
Place = tuple[float, float]
# By side of the boundary: fill, text and edge of a box.
_BOXES = {
  'kept': (KEPT, 'white', KEPT),
  'past': ('#eef1f5', '#66717f', PALE),
  'new': ('white', INK, INK),
}
_ACROSS = 1.5  # inches between boxes
_DOWN = 0.72


def spans(title: str, rows: Sequence[Row], positions: int = 12) -> bytes:
  """Returns a band a tensor: each row a line from its making to its last read.

  Args:
    title: above it.
    rows: of a report.
    positions: shown of the length analysed.
  """
  shown = [row for row in rows if row.spans]
  canvas, (axes,) = figure(1, 8, 0.62 * len(shown) + 1.4, title)
  stroke = {'linewidth': 1.6, 'marker': '.', 'markersize': 4}
  for place, row in enumerate(shown):
    colour = KEPT if row.kept else GONE
    for first, last in row.spans:
      if first < positions:
        y = place + 0.8 * (first / positions - 0.5)
        ends = [first, min(last, positions - 1)]
        axes.plot(ends, [y, y], color=colour, clip_on=False, **stroke)
  axes.set_yticks(range(len(shown)), [row.name for row in shown])
  axes.invert_yaxis()
  axes.set_xlim(-0.3, positions - 0.7)
  axes.set_xticks(range(positions))
  axes.set_xlabel('position whose step makes it, to the last whose step reads')
  axes.plot([], [], color=KEPT, label='kept')
  axes.plot([], [], color=GONE, label='not kept')
  axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc='upper left')
  return png(canvas)


def front(title: str, points: Sequence[Point]) -> bytes:
  """Returns the points of a frontier, bytes against FLOPs.

  Args:
    title: above it.
    points: of the frontier; named if they are few.
  """
  canvas, (axes,) = figure(1, 8, 4, title)
  size = [point.bytes_per_token + point.state_bytes for point in points]
  flops = [point.flops_per_token for point in points]
  axes.plot(size, flops, color=FAINT, drawstyle='steps-post')
  few = len(points) < 9
  width = 8 if few else 5
  axes.plot(size, flops, 'o', color=KEPT, markersize=width, clip_on=False)
  axes.set(xlim=(0, 1.35 * max(*size, 1)), ylim=(0, 1.2 * max(*flops, 1)))
  axes.set_xlabel('bytes kept, a token (a state: in all)')
  axes.set_ylabel('FLOPs redone, a past token and step')
  if few:
    offset = {'xytext': (7, 6), 'textcoords': 'offset points'}
    for point, *place in zip(points, size, flops, strict=True):
      axes.annotate(_short(point.names), place, fontsize=9, **offset)
  return png(canvas)


def _short(names: Sequence[str]) -> str:
  if len(names) > 3:
    return f'{names[0]} + {names[1]} + {len(names) - 2} more'
  return ' + '.join(names) or 'nothing'


def crossing(title: str, graph: Dataflow) -> bytes:
  """Returns the dataflow, past rows left and the new row right of the cut."""
  place = _layout(graph)
  lanes = max(x for x, _ in place.values()) + 1
  depth = max(y for _, y in place.values()) + 1
  canvas, (axes,) = figure(
    1, _ACROSS * (2 * lanes + 0.35), _DOWN * (depth + 0.8), title
  )
  where = [
    (place[name][0] + (lanes + 0.3) * (side == 'new'), -place[name][1])
    for name, side in graph.nodes
  ]
  axes.set_xlim(-0.5, 2 * lanes - 0.2)
  axes.set_ylim(-depth + 0.5, 0.85)
  axes.set_axis_off()
  nodes = zip(where, graph.nodes, strict=True)
  boxes = [_box(axes, center, name, side) for center, (name, side) in nodes]
  for edge in graph.edges:
    _arrow(axes, graph, where, boxes, edge)
  boundary = lanes - 0.35
  axes.axvline(boundary, color=GONE, linestyle='--', linewidth=1.4)
  # Next to the dashed line, not on it: only arrows may cross the cut.
  axes.text(boundary - 0.08, 0.62, 'past tokens', ha='right', color=GONE)
  axes.text(boundary + 0.08, 0.62, 'the new token', ha='left', color=GONE)
  return png(canvas)


def _box(axes: Any, place: Place, text: str, side: str) -> Any:
  """Draws a box; returns its outline, which is known once it is drawn."""
  fill, ink, edge = _BOXES[side]
  box = {'boxstyle': 'round,pad=0.35', 'facecolor': fill, 'edgecolor': edge}
  # Boxes are drawn before arrows, which end at the outlines.
  return axes.text(
    *place, text, ha='center', va='center', color=ink, bbox=box, zorder=1
  ).get_bbox_patch()


def _arrow(axes, graph, where, boxes, edge: tuple[int, int]) -> None:
  source, target = edge
  source_is_new, target_is_new = (graph.nodes[i][1] == 'new' for i in edge)
  crosses = target_is_new and not source_is_new
  others = [place for node, place in enumerate(where) if node not in edge]
  bend = _bend(where[source], where[target], others)
  axes.annotate(
    '',
    where[target],
    where[source],
    arrowprops={
      'arrowstyle': '-|>',
      'connectionstyle': f'arc3,rad={bend}',
      'color': KEPT if crosses else INK if target_is_new else PALE,
      'linewidth': 2.2 if crosses else 1.1,
      'patchA': boxes[source],
      'patchB': boxes[target],
    },
    zorder=3 if crosses else 2,
  )


def _bend(start: Place, end: Place, boxes: Sequence[Place]) -> float:
  """Returns how far an arrow bends outwards, around a box on its way."""
  inches = np.array([_ACROSS, _DOWN])
  along = inches * np.subtract(end, start)
  for place in boxes:
    to = inches * np.subtract(place, start)
    part = to @ along / (along @ along)
    if 0.05 < part < 0.95 and np.abs(to - part * along).max() < 0.16:
      return 0.3 if start[0] <= end[0] else -0.3
  return 0.0


def _layout(graph: Dataflow) -> dict[str, Place]:
  """Returns a column and a depth for every name, the same on both sides."""
  parents = collections.defaultdict(set)
  for source, target in graph.edges:
    parents[graph.nodes[target][0]].add(graph.nodes[source][0])
  levels = []
  left = list(dict.fromkeys(name for name, _ in graph.nodes))
  while left:
    ready = [n for n in left if parents[n].isdisjoint({*left} - {n})]
    levels.append(ready or left[:1])  # A loop is cut at its first name.
    left = [name for name in left if name not in levels[-1]]
  widest = max(map(len, levels))
  return {
    name: ((widest - len(level)) / 2 + i, y)
    for y, level in enumerate(levels)
    for i, name in enumerate(level)
  }
