"""Pictures of memory as PNG bytes: what it holds, how it grows, what fits."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.reporting.plots import (
  COLOURS,
  FAINT,
  INK,
  MARKERS,
  figure,
  png,
)

QUERY = COLOURS[5]
UNITS = ((2**40, 'TiB'), (2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB'))


def size(count: float) -> str:
  """Returns bytes for people: '131 MiB'."""
  for unit, name in UNITS:
    if abs(count) >= unit:
      return f'{count / unit:.3g} {name}'
  return f'{count:.0f} bytes'


def stacked(
  title: str, rows: Mapping[str, Mapping[str, int]], limit: int, device: str
) -> bytes:
  """Returns a bar a row, its parts side by side, and where memory ends.

  Args:
    title: above.
    rows: by row, bytes by part, in the order they are stacked.
    limit: bytes of the device.
    device: its name.
  """
  canvas, (axes,) = figure(1, 9.5, 0.62 * len(rows) + 2.0, title)
  places = range(len(rows))
  left = np.zeros(len(rows))
  parts = list(dict.fromkeys(part for row in rows.values() for part in row))
  for index, part in enumerate(parts):
    widths = np.array([row.get(part, 0) / 2**30 for row in rows.values()])
    colour = COLOURS[index % len(COLOURS)]
    axes.barh(places, widths, 0.62, left=left, color=colour, label=part)
    left = left + widths
  for y, end in enumerate(left):
    axes.text(end, y, f'  {size(end * 2**30)}', va='center', color=INK)
  end = limit / 2**30
  axes.axvline(end, color=INK, linestyle='--', linewidth=1.2)
  axes.text(end, -0.62, f'{device} ', ha='right', va='bottom', color=INK)
  axes.set_yticks(places, list(rows))
  axes.set_ylim(len(rows) - 0.5, -0.95)
  axes.set_xlim(0, 1.16 * max(*left, end))
  axes.set_xlabel('GiB of one device')
  canvas.legend(frameon=False, ncols=len(parts), loc='outside lower left')
  return png(canvas)


def against_context(
  title: str,
  caches: Mapping[str, Mapping[int, int]],
  limit: tuple[str, int] | None,
  query: int,
) -> bytes:
  """Returns bytes of caches against the context, and Q's sliver below.

  Args:
    title: above.
    caches: by name, bytes of the cache by context.
    limit: name and bytes of what the device has left; None if nothing.
    query: bytes of the queries of one step.
  """
  canvas, axes, contexts = _curves(title, caches, 5.0)
  name_above = functools.partial(
    axes.annotate, xytext=(4, 3), textcoords='offset points', va='bottom'
  )
  if limit is not None:
    name, room = limit
    axes.axhline(room, color=INK, linestyle='--', linewidth=1.2)
    name_above(f'{name}: {size(room)}', (contexts[0], room), color=INK)
  axes.plot(
    [contexts[0], contexts[-1]], [query, query], color=QUERY, linewidth=4
  )
  name_above(
    f'Q of a step: {size(query)}, whatever the context',
    (contexts[0], query),
    color=QUERY,
  )
  axes.set_ylabel('bytes (all rows)')
  axes.yaxis.set_major_formatter(lambda value, _: size(value))
  axes.yaxis.get_major_locator().set_params(base=16)
  return png(canvas)


def frontier(
  title: str, lines: Mapping[str, Mapping[int, int]], device: str
) -> bytes:
  """Returns the largest batch against the context, a line a variant.

  Args:
    title: above.
    lines: by name, the largest batch by context; 0 is left out.
    device: named next to the axis.
  """
  canvas, axes, _ = _curves(title, lines, 4.8)
  for curve in axes.lines:
    axes.fill_between(
      *curve.get_data(), 0.7, color=curve.get_color(), alpha=0.07, linewidth=0
    )
  axes.set_ylabel(f'rows that fit ({device})')
  axes.set_ylim(bottom=0.7)
  axes.yaxis.set_major_formatter('{x:,.0f}')
  return png(canvas)


def _curves(title, series, height: float) -> tuple[Any, Any, list[int]]:
  """Returns figure, panel and contexts of curves that are named at their ends.

  A value of 0, which a logarithmic axis cannot show, is left out.
  """
  canvas, (axes,) = figure(1, 9.0, height, title)
  contexts = sorted({n for points in series.values() for n in points})
  for index, (name, points) in enumerate(series.items()):
    shown = [(n, value) for n, value in points.items() if value]
    if not shown:
      continue
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(*zip(*shown, strict=True), marker=marker, color=colour)
    axes.annotate(
      name,
      max(shown),
      (7, 0),
      textcoords='offset points',
      va='center',
      color=colour,
    )
  axes.set_xscale('log', base=2)
  axes.set_yscale('log', base=2)
  axes.set_xticks(contexts, [f'{n:,}' for n in contexts])
  axes.set_xlabel('context (tokens)')
  axes.set_xlim(contexts[0] / 1.1, contexts[-1] * 1.9)
  return canvas, axes, contexts


def lives(
  title: str, spans: Mapping[str, Sequence[tuple[int, int]]], steps: int
) -> bytes:
  """Returns a row a tensor and a column a step: filled while it is alive.

  Args:
    title: above.
    spans: by tensor, for each token the first and the last step it is read.
    steps: columns.
  """
  rows = [(name, token) for token in range(steps) for name in spans]
  canvas, (axes,) = figure(1, 8.0, 0.26 * len(rows) + 1.4, title)
  colours = dict(zip(spans, (QUERY, COLOURS[0], COLOURS[2]), strict=False))
  for y, (name, token) in enumerate(rows):
    first, last = spans[name][token]
    width = last - first + 0.92
    axes.barh(y, width, left=first - 0.46, height=0.8, color=colours[name])
  for step in range(1, steps):
    axes.axhline(step * len(spans) - 0.5, color=FAINT, linewidth=1)
  labels = [f'{name} of token {token}' for name, token in rows]
  axes.set_yticks(range(len(rows)), labels, fontsize=8)
  axes.set_xticks(range(steps), [f'step {step}' for step in range(steps)])
  axes.set_xlim(-0.6, steps - 0.4)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.tick_params(length=0)
  return png(canvas)
