"""Plots as PNG bytes; matplotlib is imported when one is drawn.

Colours are Okabe and Ito's (distinct to colour-blind readers), and series
differ in their markers as well. The same input gives the same bytes.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00')
MARKERS = 'osD^vP'
STYLES = ('-', ':', '-.')  # of the first six series, the next six, ...
INK = '#1d2733'
FAINT = '#d8dee6'
PAGE = 9.0  # inches: a page shows a picture of this width at its own size


def bars(
  title: str, rows: Mapping[str, tuple[float, float]], unit: str
) -> bytes:
  """Returns a bar a row: what is kept, and what a Q cache would add to it."""
  canvas, (axes,) = figure(1, 7.5, 0.55 * len(rows) + 1.5, title)
  _memory_bars(axes, rows, unit)
  return png(canvas)


def lines(
  title: str,
  series: Mapping[str, Mapping[float, float]],
  x: str,
  y: str,
  *,
  dashed: Sequence[str] = (),
  limit: tuple[str, float] | None = None,
  format: str | Callable[[float, int], str] | None = None,
) -> bytes:
  """Returns `lines_below` of a single panel."""
  panels = {title: series}
  return lines_below(
    '', panels, x, y, dashed=dashed, limit=limit, format=format
  )


def lines_below(
  title: str,
  parts: Mapping[str, Mapping[str, Mapping[float, float]]],
  x: str,
  y: str,
  *,
  dashed: Sequence[str] = (),
  limit: tuple[str, float] | None = None,
  format: str | Callable[[float, int], str] | None = None,
) -> bytes:
  """Returns panels of log-log lines below what none of them can exceed.

  Args:
    title: above all.
    parts: series by the title of their panel; a name looks the same in each.
    x: name of the horizontal axes.
    y: name of the vertical axes, which all have one scale.
    dashed: names of series that take the markers of the others, in order, and
      have another colour.
    limit: name and height of a dashed line across each panel; None for none.
    format: of the vertical ticks, which are then powers of two, as matplotlib
      takes it; None for plain numbers.
  """
  canvas, axes = figure(len(parts), 4 * len(parts) + 3.5, 4.4, title)
  names = [name for series in parts.values() for name in series]
  strokes = _strokes(names, dashed)
  for panel in axes[1:]:
    panel.sharey(axes[0])
  for panel, (heading, series) in zip(axes, parts.items(), strict=True):
    panel.set_xscale('log', base=2)
    panel.set_yscale('log', base=2 if format else 10)
    for name, points in series.items():
      values = list(points.values())
      panel.plot(list(points), values, label=name, **strokes[name])
    if limit is not None:
      panel.axhline(limit[1], color=INK, linestyle='--', label=limit[0])
    _name_ticks(panel, format)
    ticks = sorted({place for points in series.values() for place in points})
    panel.set_xticks(ticks, [f'{place:,.0f}' for place in ticks])
    panel.set_xlabel(x)
    panel.set_title(heading, loc='left')
  axes[0].set_ylabel(y)
  shown = {line.get_label(): line for panel in axes for line in panel.lines}
  canvas.legend(shown.values(), shown, frameon=False, loc='outside right upper')
  return png(canvas)


def _name_ticks(
  panel: Any, format: str | Callable[[float, int], str] | None
) -> None:
  """Names the ticks of a logarithmic vertical axis in full, without powers."""
  from matplotlib import ticker

  if format:
    panel.yaxis.set_major_formatter(format)
    return
  low, high = panel.get_ylim()
  few = ticker.LogLocator(subs=(1, 2, 5))
  # A short axis may have none of these.
  panel.yaxis.set_major_locator(
    few if high > 10 * low else ticker.AutoLocator()
  )
  panel.yaxis.set_major_formatter(lambda value, _: f'{value:,.10g}')
  panel.yaxis.set_minor_locator(ticker.NullLocator())


def _strokes(
  names: Iterable[str], dashed: Sequence[str]
) -> dict[str, dict[str, str]]:
  """Returns how each series is drawn; no two of 18 solid ones look alike.

  A dashed series has the marker of a solid one, in the same place of its order,
  hollow and in the colour half a round further.
  """
  solid = list(dict.fromkeys(name for name in names if name not in dashed))
  strokes = {}
  for order, further in (solid, 0), (list(dashed), len(COLOURS) // 2):
    for place, name in enumerate(order):
      repeats, index = divmod(place, len(COLOURS))
      strokes[name] = {
        'color': COLOURS[(index + further) % len(COLOURS)],
        'marker': MARKERS[(index + repeats) % len(MARKERS)],
        'linestyle': '--' if further else STYLES[repeats % len(STYLES)],
        'markerfacecolor': 'white' if further else COLOURS[index],
      }
  return strokes


def scatter(
  title: str,
  points: Mapping[str, Mapping[str, tuple[float, float, float]]],
  x: str,
  y: str,
) -> bytes:
  """Returns points `(x, y, spread)`: colour by series, marker by name within.

  x is logarithmic; a spread is drawn as a bar up and down. Points that would
  cover each other stand side by side.
  """
  canvas, (axes,) = figure(1, 7.5, 4.4, title)
  names = list(dict.fromkeys(n for group in points.values() for n in group))
  places = iter(side_by_side([p for g in points.values() for p in g.values()]))
  for index, (series, group) in enumerate(points.items()):
    axes.plot([], [], 's', color=COLOURS[index], label=series, markersize=8)
    for name, (_, value, spread) in group.items():
      style = {'color': COLOURS[index], 'marker': MARKERS[names.index(name)]}
      axes.errorbar(next(places), value, spread or None, capsize=2, **style)
  for index, name in enumerate(names):
    axes.plot([], [], MARKERS[index], color='#55606e', label=name)
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.set(xlabel=x, ylabel=y)
  axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc='upper left')
  return png(canvas)


def side_by_side(points: Sequence[tuple[float, float, float]]) -> list[float]:
  """Returns where to draw points `(x, y, spread)` on a logarithmic x axis.

  Those of one x whose spreads or markers meet go left and right of it, by a
  part of the axis each; all others stay.
  """
  places = [x for x, _, _ in points]
  # Half the height of a marker, in units of y.
  marker = 0.02 * np.ptp([y for _, y, _ in points])
  reach = [max(spread, marker) for _, _, spread in points]
  step = max(max(places) / min(places), 2.0) ** (1 / 80)
  order = sorted(range(len(points)), key=lambda i: points[i][1] - reach[i])
  for place in set(places):
    clusters: list[list[int]] = []
    top = -np.inf
    for index in [i for i in order if points[i][0] == place]:
      y = points[index][1]
      if y - reach[index] > top:
        clusters.append([])
      clusters[-1].append(index)
      top = max(top, y + reach[index])
    for cluster in clusters:
      for turn, index in enumerate(cluster):
        places[index] = place * step ** (turn - (len(cluster) - 1) / 2)
  return places


def heat(
  title: str,
  panels: Mapping[str, np.ndarray],
  labels: Sequence[str],
  row: str,
  column: str,
) -> bytes:
  """Returns square matrices, as many side by side as a page has room for.

  Args:
    title: above all.
    panels: a matrix `[T, T]` of numbers from 0 to 1 each.
    labels: one a row and column.
    row, column: names of the axes of the first matrix.
  """
  # Inches: a column is as wide as its label in 8 points.
  side = 0.8 + len(labels) * (0.05 + 0.07 * max(map(len, labels)))
  rows = -(-len(panels) // max(1, int(PAGE / side)))
  width = max(side * -(-len(panels) // rows), 4.5)  # a title needs that
  height = (side + 0.1) * rows + 0.4
  canvas, axes = figure(len(panels), width, height, title, rows=rows)
  for panel, (name, matrix) in zip(axes, panels.items(), strict=True):
    panel.imshow(np.sqrt(matrix), cmap='Blues', vmin=0, vmax=1)
    panel.set_title(name, loc='left', fontsize=10)
    panel.set_xticks(range(len(labels)), labels, fontsize=8, family='monospace')
    panel.set_yticks(range(len(labels)), labels, fontsize=8, family='monospace')
    panel.tick_params(length=0, pad=1)
    panel.grid(False)
  axes[0].set(ylabel=row, xlabel=column)
  return png(canvas)


def lifetimes(
  title: str,
  lives: Mapping[str, Sequence[tuple[int, int]]],
  memory: Mapping[str, tuple[float, float]],
  unit: str,
) -> bytes:
  """Returns two panels: how long each token's tensors live, and their bytes.

  Args:
    title: above both.
    lives: by tensor, for each token the first and the last step it is read.
    memory: as the rows of `bars`.
    unit: of those.
  """
  canvas, (left, right) = figure(2, 11, 4.3, ratio=(1.25, 1))
  count = len(next(iter(lives.values())))
  height = 0.8 / len(lives)
  for index, (name, spans) in enumerate(lives.items()):
    first, last = np.transpose(spans)
    left.barh(
      np.arange(count) + (index - (len(lives) - 1) / 2) * height,
      last - first + 0.86,
      left=first - 0.43,
      height=0.82 * height,
      color=COLOURS[(5, 0, 2)[index % 3]],
      label=name,
    )
  left.set_xlim(-0.6, count - 0.4)
  left.set_xticks(range(count))
  left.set_yticks(range(count), [f'token {t}' for t in range(count)])
  left.invert_yaxis()
  left.set_xlabel('decode step in which it is read')
  left.set_title('who is read, and until when', loc='left', fontsize=10)
  left.legend(frameon=False, loc='lower left')
  _memory_bars(right, memory, unit)
  right.set_title('what a token leaves behind', loc='left', fontsize=10)
  canvas.suptitle(title, x=0.01, ha='left', fontsize=13)
  return png(canvas)


def _memory_bars(
  axes: Any, rows: Mapping[str, tuple[float, float]], unit: str
) -> None:
  names = list(rows)
  kept, query = np.asarray(list(rows.values()), float).T
  axes.barh(names, kept, color=COLOURS[0], label='the cache')
  # Hatched, because these bytes would be kept for nothing.
  ends = axes.barh(
    names,
    query,
    left=kept,
    color='white',
    edgecolor=COLOURS[5],
    hatch='////',
    label='a Q cache would add',
  )
  sums = [
    f'{size:,.0f} + {more:,.0f} = {size + more:,.0f}'
    for size, more in zip(kept, query, strict=True)
  ]
  axes.bar_label(ends, sums, padding=4, color=INK, fontsize=9)
  axes.grid(visible=False, axis='y')  # It would strike the labels through.
  axes.invert_yaxis()
  axes.set_xlim(0, 2 * max(kept + query))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.locator_params('x', nbins=5)
  axes.set_xlabel(unit)
  axes.figure.legend(
    *axes.get_legend_handles_labels(),
    frameon=False,
    loc='outside lower right',
    ncols=2,
  )


def figure(
  panels: int,
  width: float,
  height: float,
  title: str = '',
  ratio: Sequence[float] | None = None,
  rows: int = 1,
) -> tuple[Any, Any]:
  """Returns a matplotlib figure and its panels, from left to right.

  Args:
    panels: how many.
    width, height: of the figure, in inches.
    title: above a single panel, or above all; '' for none.
    ratio: relative widths of the panels; None for equal ones.
    rows: of panels, all but the last one full.
  """
  from matplotlib.figure import Figure

  canvas = Figure((width, height), layout='constrained')
  grid = canvas.subplots(
    rows, -(-panels // rows), squeeze=False, width_ratios=ratio
  )
  axes = grid.flatten()[:panels]
  for rest in grid.flatten()[panels:]:
    rest.remove()
  for panel in axes:
    panel.spines[['top', 'right']].set_visible(False)
    panel.spines[['left', 'bottom']].set_color(INK)
    panel.grid(color=FAINT, linewidth=0.6)
    panel.set_axisbelow(True)
  if title and panels == 1:
    axes[0].set_title(title, loc='left')
  elif title:
    canvas.suptitle(title, x=0.01, ha='left', fontsize=12)
  return canvas, axes


def png(canvas: Any) -> bytes:
  """Returns a figure as the bytes of a PNG."""
  data = io.BytesIO()
  canvas.savefig(data, format='png', dpi=150, metadata={'Software': None})
  return data.getvalue()
