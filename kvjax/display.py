"""How results show themselves: short at a prompt, a table in a notebook."""

import abc
import dataclasses
import html
from collections.abc import Sequence
from typing import Any

UNITS = {'TiB': 2**40, 'GiB': 2**30, 'MiB': 2**20, 'KiB': 2**10}
SHORT = 8  # most rows of a `repr`


def binary_size(count: float) -> str:
  """Returns bytes for people: '131 MiB'."""
  for name, unit in UNITS.items():
    if abs(count) >= unit:
      size = count / unit
      # `.3g` would show 1,002 KiB, which are less than a MiB, as 1e+03.
      return (
        f'{size:.0f} {name}' if abs(size) >= 999.5 else f'{size:.3g} {name}'
      )
  return f'{count:.0f} bytes'


def compact(value: Any) -> str:
  """Returns the `repr` of a dataclass without the fields at their default."""
  if isinstance(value, tuple):
    inside = ', '.join(map(compact, value))
    return f'({inside},)' if len(value) == 1 else f'({inside})'
  if not dataclasses.is_dataclass(value) or isinstance(value, type):
    return repr(value)
  parts = [
    f'{f.name}={compact(getattr(value, f.name))}'
    for f in dataclasses.fields(value)
    if f.init and getattr(value, f.name) != f.default
  ]
  return f'{type(value).__name__}({", ".join(parts)})'


@dataclasses.dataclass(frozen=True)
class Display:
  """Rows of text under named columns.

  Attributes:
    title: above the table.
    columns: names.
    rows: a cell for each column.
    left: names of the columns that are aligned to the left.
    notes: sentences below the table.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  left: Sequence[str] = ()
  notes: Sequence[str] = ()

  def text(self, most: int | None = None) -> str:
    """Returns the table as text.

    Args:
      most: rows; the others are counted, and the notes are left out. None for
        all rows and the notes.
    """
    shown = self.rows if most is None else self.rows[:most]
    cells = [self.columns, *shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [self.title] if self.title else []
    for row in cells:
      padded = [
        cell.ljust(width) if name in self.left else cell.rjust(width)
        for name, cell, width in zip(self.columns, row, widths, strict=True)
      ]
      lines.append('  '.join(padded).rstrip())
    if len(shown) < len(self.rows):
      more = len(self.rows) - len(shown)
      lines.append(f'... and {more} more rows, which print() shows')
    return '\n'.join([*lines, *(self.notes if most is None else ())])

  def html(self) -> str:
    """Returns the table as HTML that loads nothing from elsewhere."""

    def line(tag: str, cells: Sequence[str]) -> str:
      marked = ''
      for name, cell in zip(self.columns, cells, strict=True):
        side = 'left' if name in self.left else 'right'
        style = f'style="text-align: {side}; padding: 0 0.6em"'
        marked += f'<{tag} {style}>{html.escape(cell)}</{tag}>'
      return f'<tr>{marked}</tr>'

    title = html.escape(self.title)
    body = ''.join(line('td', row) for row in self.rows)
    notes = ''.join(f'<p>{html.escape(note)}</p>' for note in self.notes)
    return (
      f'<p><b>{title}</b></p><table><thead>{line("th", self.columns)}</thead>'
      f'<tbody>{body}</tbody></table>{notes}'
    )


class Displayed(abc.ABC):
  """Shows itself by `display`; a dataclass needs `repr=False` for that."""

  @abc.abstractmethod
  def display(self) -> Display:
    """Returns the table of this object."""

  def __str__(self) -> str:
    return self.display().text()

  def __repr__(self) -> str:
    return self.display().text(SHORT)

  def _repr_html_(self) -> str:
    return self.display().html()
