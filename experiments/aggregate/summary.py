"""Median and spread of a field over repeats, as Markdown, CSV or LaTeX."""

import csv
import dataclasses
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting.blocks import are_numbers, cell, markdown_table
from experiments.reporting.groups import (
  grouped,
  median_and_spread,
  with_spread,
)

Record = Mapping[str, Any]
_LATEX = str.maketrans(
  {sign: f'\\{sign}' for sign in '&%_#${}'}
  | {
    '\\': r'\textbackslash{}',
    '^': r'\textasciicircum{}',
    '~': r'\textasciitilde{}',
    '±': r'$\pm$',
    # The fonts that LaTeX begins with have other signs in these places.
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    # After the end of a row these would be options of it.
    '[': '{[}',
    '*': '{*}',
  }
)


@dataclasses.dataclass(frozen=True)
class Repeats:
  """A cell: median and half the range of a field over the records of a group.

  Attributes:
    median: of the values.
    spread: half their range.
    count: of records.
  """

  median: float
  spread: float
  count: int

  def __str__(self) -> str:
    return with_spread(self.median, self.spread)


@dataclasses.dataclass(frozen=True)
class Summary:
  """A table of groups.

  Attributes:
    columns: names.
    rows: cells; `Repeats`, values of a group, and None for no record.
    fields: whose medians the cells are.
  """

  columns: tuple[str, ...]
  rows: tuple[tuple[Any, ...], ...]
  fields: tuple[str, ...]

  def texts(self) -> list[list[str]]:
    """Returns head and rows as text."""
    rows = [[_text(value) for value in row] for row in self.rows]
    return [list(self.columns), *rows]

  def are_numeric(self) -> list[bool]:
    """Returns for each column whether it is one of numbers."""
    rows = self.texts()[1:]
    return [are_numbers(column) for column in zip(*rows, strict=True)]

  def note(self) -> str:
    """Returns the sentence that says what a cell is."""
    counts = [
      x.count for row in self.rows for x in row if isinstance(x, Repeats)
    ]
    least, most = min(counts), max(counts)
    fields = ', '.join(self.fields)
    if most == 1:
      return f'{fields}: of one record.'
    number = f'{most}' if least == most else f'{least} to {most}'
    return f'{fields}: median of {number} records, ± half their range.'


def summarize(
  records: Sequence[Record],
  by: Sequence[str],
  values: Sequence[str],
  where: Mapping[str, str] | None = None,
  across: str = '',
) -> Summary:
  """Groups records and returns a table of medians and half ranges.

  A field may be dotted, to reach into a record: `config.seed`.

  Args:
    records: as read from JSON lines.
    by: fields whose values make a group, one row each, in order of appearance.
    values: numeric fields, a column each.
    where: field -> value that a record must have, compared as text.
    across: a field each of whose values gets its own columns; '' for none, and
      then a last column `n` counts the records of each row.

  Raises:
    ValueError: no record has these fields.
  """
  conditions = (where or {}).items()
  wanted = [
    r for r in records if all(str(_get(r, k)) == v for k, v in conditions)
  ]
  fields = [*by, across] if across else by
  group_of = lambda record: tuple(_get(record, name) for name in fields)
  kept = [
    r for r in wanted if None not in group_of(r) and _numbers([r], values)
  ]
  if not all(_numbers(kept, [name]) for name in values):
    known = sorted({name for record in wanted for name in record})
    raise ValueError(
      f'by={",".join(fields)} value={",".join(values)}: not all are fields of '
      f'the {len(wanted)} selected records; theirs: '
      f'{", ".join(known) or "none"}.'
    )
  groups = grouped(kept, group_of)
  cells = {
    group: tuple(_repeats(members, name) for name in values)
    for group, members in groups.items()
  }
  if across:
    return _pivot(cells, by, values)
  rows = [(*group, *cells[group], len(groups[group])) for group in groups]
  return Summary((*by, *values, 'n'), tuple(rows), tuple(values))


def _pivot(
  cells: Mapping[tuple[Any, ...], tuple[Repeats | None, ...]],
  by: Sequence[str],
  values: Sequence[str],
) -> Summary:
  """Returns a row for all but the last field of the groups, which is across."""
  heads = dict.fromkeys(group[-1] for group in cells)
  none = (None,) * len(values)
  names = [
    str(head) if len(values) == 1 else f'{head}: {name}'
    for head in heads
    for name in values
  ]
  rows = [
    (*row, *(x for head in heads for x in cells.get((*row, head), none)))
    for row in dict.fromkeys(group[:-1] for group in cells)
  ]
  return Summary((*by, *names), tuple(rows), tuple(values))


def markdown(summary: Summary) -> str:
  """Returns a Markdown table, numbers to the right, and what its cells are."""
  head, *body = summary.texts()
  table = markdown_table(head, body, summary.are_numeric())
  return f'{table}\n\n{summary.note()}\n'


def latex(summary: Summary, caption: str = '', label: str = '') -> str:
  """Returns a LaTeX table (booktabs); its caption says what its cells are.

  Args:
    summary: the table.
    caption: LaTeX before the sentence about the cells.
    label: for `\\ref`; '' for none.
  """
  head, *body = map(_latex_row, summary.texts())
  align = ''.join('r' if right else 'l' for right in summary.are_numeric())
  words = f'{caption} {_latex_text(summary.note())}'.strip()
  lines = [
    r'\begin{table}',
    r'\centering',
    f'\\caption{{{words}}}',
    *([f'\\label{{{label}}}'] if label else []),
    f'\\begin{{tabular}}{{{align}}}',
    r'\toprule',
    head,
    r'\midrule',
    *body,
    r'\bottomrule',
    r'\end{tabular}',
    r'\end{table}',
  ]
  return '\n'.join(lines) + '\n'


def comma_separated(summary: Summary) -> str:
  """Returns CSV, every number in full, spreads in columns of theirs."""
  spread = [
    any(isinstance(row[i], Repeats) for row in summary.rows)
    for i in range(len(summary.columns))
  ]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  head = zip(summary.columns, spread, strict=True)
  writer.writerow(
    x for name, two in head for x in ([name, f'{name} ±'] if two else [name])
  )
  for row in summary.rows:
    pairs = zip(row, spread, strict=True)
    writer.writerow(x for value, two in pairs for x in _in_full(value, two))
  return text.getvalue()


FORMATS = {'markdown': markdown, 'csv': comma_separated, 'latex': latex}


def _in_full(value: Any, has_spread: bool) -> tuple[Any, ...]:
  if isinstance(value, Repeats):
    return value.median, value.spread
  return (value, value) if has_spread else (value,)


def _text(value: Any) -> str:
  return str(value) if isinstance(value, Repeats) else cell(value)


def _repeats(records: Sequence[Record], name: str) -> Repeats | None:
  values = _numbers(records, [name])
  return Repeats(*median_and_spread(values), len(values)) if values else None


def _numbers(records: Iterable[Record], names: Iterable[str]) -> list[float]:
  """Returns the values of fields, where a record has them."""
  fields = [_get(record, name) for record in records for name in names]
  return [float(value) for value in fields if value is not None]


def _get(record: Record, name: str) -> Any:
  value: Any = record
  for part in [name] if name in record else name.split('.'):
    value = value.get(part) if isinstance(value, Mapping) else None
  return value


def _latex_row(cells: Sequence[str]) -> str:
  return ' & '.join(map(_latex_text, cells)) + r' \\'


def _latex_text(text: str) -> str:
  """Returns text as LaTeX shows it; the minus of a number is no hyphen."""
  text = text.translate(_LATEX)
  return re.sub(r'^-(?=[\d.])', '$-$', text)
