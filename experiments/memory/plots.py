"""Pictures of memory as PNG bytes: what it holds, how it grows, what fits."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting.plots import (
  COLOURS,
  FAINT,
  INK,
  MARKERS,
  figure,
  png,
)

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
  canvas, (axes,) = figure(1, 9.5, 0.62 * len(rows) + 2.0)
  parts = list(dict.fromkeys(part for row in rows.values() for part in row))
  left = [0.0] * len(rows)
  for index, part in enumerate(parts):
    widths = [row.get(part, 0) / 2**30 for row in rows.values()]
    axes.barh(
      range(len(rows)),
      widths,
      left=left,
      color=COLOURS[index % len(COLOURS)],
      label=part,
      height=0.62,
    )
    left = [a + b for a, b in zip(left, widths, strict=True)]
  for y, end in enumerate(left):
    axes.text(end, y, f'  {size(end * 2**30)}', va='center', color=INK)
  axes.axvline(limit / 2**30, color=INK, linestyle='--', linewidth=1.2)
  axes.text(
    limit / 2**30, -0.62, f'{device} ', ha='right', va='bottom', color=INK
  )
  axes.set_yticks(range(len(rows)), list(rows))
  axes.set_ylim(len(rows) - 0.5, -0.95)
  axes.set_xlim(0, 1.16 * max(*left, limit / 2**30))
  axes.set_xlabel('GiB of one device')
  axes.set_title(title, loc='left')
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
  canvas, (axes,) = figure(1, 9.0, 5.0)
  contexts = sorted({n for points in caches.values() for n in points})
  for index, (name, points) in enumerate(caches.items()):
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(list(points), list(points.values()), marker=marker, color=colour)
    _beside(axes, contexts[-1], points[contexts[-1]], name, colour)
  if limit is not None:
    axes.axhline(limit[1], color=INK, linestyle='--', linewidth=1.2)
    _above(axes, contexts[0], limit[1], f'{limit[0]}: {size(limit[1])}', INK)
  axes.plot(
    [contexts[0], contexts[-1]], [query] * 2, color=COLOURS[5], linewidth=4
  )
  _above(
    axes,
    contexts[0],
    query,
    f'Q of a step: {size(query)}, whatever the context',
    COLOURS[5],
  )
  _log(axes, contexts, 'context (tokens)', 'bytes (all rows)')
  axes.set_xlim(contexts[0] / 1.1, contexts[-1] * 1.9)
  axes.yaxis.set_major_formatter(lambda value, _: size(value))
  axes.yaxis.set_major_locator(_powers(16))
  axes.set_title(title, loc='left')
  return png(canvas)


def frontier(
  title: str, lines: Mapping[str, Mapping[int, int]], device: str
) -> bytes:
  """Returns the largest batch against the context, a line a variant.

  Args:
    title: above.
    lines: by name, the largest batch by context; 0 is left out.
    device: named beside the axis.
  """
  canvas, (axes,) = figure(1, 9.0, 4.8)
  contexts = sorted({n for points in lines.values() for n in points})
  for index, (name, points) in enumerate(lines.items()):
    kept = {n: batch for n, batch in points.items() if batch}
    colour = COLOURS[index % len(COLOURS)]
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(list(kept), list(kept.values()), marker=marker, color=colour)
    axes.fill_between(list(kept), list(kept.values()), 0.7, color=colour,
                      alpha=0.07, linewidth=0)  # fmt: skip
    if kept:
      last = max(kept)
      _beside(axes, last, kept[last], name, colour)
  _log(axes, contexts, 'context (tokens)', f'rows that fit ({device})')
  axes.set_ylim(bottom=0.7)
  axes.set_xlim(contexts[0] / 1.1, contexts[-1] * 1.9)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
  axes.set_title(title, loc='left')
  return png(canvas)


def lives(
  title: str, spans: Mapping[str, Sequence[tuple[int, int]]], steps: int
) -> bytes:
  """Returns a row a tensor and a column a step: filled while it is alive.

  Args:
    title: above.
    spans: by tensor, for each token the first and the last step it is read.
    steps: columns.
  """
  rows = [
    (f'{name} of token {token}', name, *spans[name][token])
    for token in range(steps)
    for name in spans
  ]
  canvas, (axes,) = figure(1, 8.0, 0.26 * len(rows) + 1.4)
  colours = dict(zip(spans, (COLOURS[5], COLOURS[0], COLOURS[2]), strict=False))
  for y, (_, name, first, last) in enumerate(rows):
    axes.barh(
      y,
      last - first + 0.92,
      left=first - 0.46,
      height=0.8,
      color=colours[name],
    )
  for step in range(1, steps):
    axes.axhline(step * len(spans) - 0.5, color=FAINT, linewidth=1)
  axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
  axes.set_xticks(range(steps), [f'step {step}' for step in range(steps)])
  axes.set_xlim(-0.6, steps - 0.4)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.tick_params(length=0)
  axes.set_title(title, loc='left')
  return png(canvas)


def _beside(axes: Any, x: float, y: float, text: str, colour: str) -> None:
  axes.annotate(text, (x, y), (7, 0), textcoords='offset points',
                va='center', color=colour)  # fmt: skip


def _above(axes: Any, x: float, y: float, text: str, colour: str) -> None:
  axes.annotate(text, (x, y), (4, 3), textcoords='offset points',
                va='bottom', color=colour)  # fmt: skip


def _log(axes: Any, contexts: Sequence[int], x: str, y: str) -> None:
  axes.set_xscale('log', base=2)
  axes.set_yscale('log', base=2)
  axes.set_xticks(contexts, [f'{n:,}' for n in contexts])
  axes.set_xlabel(x)
  axes.set_ylabel(y)


def _powers(base: int) -> Any:
  from matplotlib.ticker import LogLocator

  return LogLocator(base=base)
