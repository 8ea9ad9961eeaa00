"""Median and spread of a field over repeats, as Markdown, CSV or LaTeX."""

import collections
import csv
import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting.blocks import cell

Row = list[Any]


def summarize(
  records: Sequence[Mapping[str, Any]],
  by: Sequence[str],
  values: Sequence[str],
  where: Mapping[str, str] | None = None,
) -> tuple[list[str], list[Row]]:
  """Groups records and returns a table of medians and half ranges.

  A field may be dotted, to reach into a record: `config.seed`.

  Args:
    records: as read from JSON lines.
    by: fields whose values make a group, one row each, in order of appearance.
    values: numeric fields; two columns each, median and half the range.
    where: field -> value that a record must have, compared as text.

  Returns:
    Column names, the last of them `n`, and rows.

  Raises:
    ValueError: no record has these fields.
  """
  conditions = (where or {}).items()
  wanted = [
    r for r in records if all(str(_get(r, k)) == v for k, v in conditions)
  ]
  groups = collections.defaultdict(list)
  for record in wanted:
    key = tuple(_get(record, name) for name in by)
    if None not in key and any(_get(record, v) is not None for v in values):
      groups[key].append(record)
  kept = [record for group in groups.values() for record in group]
  if not all(any(_get(r, v) is not None for r in kept) for v in values):
    known = sorted({name for record in wanted for name in record})
    raise ValueError(
      f'by={",".join(by)} value={",".join(values)}: not all are fields of the '
      f'{len(wanted)} selected records; theirs: {", ".join(known) or "none"}.'
    )
  columns = [*by, *(name for v in values for name in (v, f'{v} ±')), 'n']
  rows = []
  for key, group in groups.items():
    figures = [figure for v in values for figure in _statistics(group, v)]
    rows.append([*key, *figures, len(group)])
  return columns, rows


def markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a Markdown table, spreads joined to their medians."""
  head = _head(columns)
  body = [_join(columns, row) for row in rows]
  lines = [head, ['---'] * len(head), *body]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def latex(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a LaTeX tabular (booktabs), spreads joined to their medians."""
  head = _head(columns)
  body = [_latex_row(_join(columns, row)) for row in rows]
  lines = [r'\toprule', _latex_row(head), r'\midrule', *body, r'\bottomrule']
  inside = '\n'.join(lines)
  align = 'l' * (len(head) - 1) + 'r'
  return f'\\begin{{tabular}}{{{align}}}\n{inside}\n\\end{{tabular}}\n'


def comma_separated(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns CSV, every number in full."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(rows)
  return text.getvalue()


FORMATS = {'markdown': markdown, 'csv': comma_separated, 'latex': latex}


def _statistics(group: Iterable[Any], field: str) -> tuple[float, float]:
  """Returns the median of a field and half its range; NaN where none has it."""
  values = [_get(record, field) for record in group]
  numbers = [float(value) for value in values if value is not None]
  if not numbers:
    return math.nan, 0.0
  return statistics.median(numbers), (max(numbers) - min(numbers)) / 2


def _join(columns: Sequence[str], row: Row) -> list[str]:
  """Returns the cells of a row, each spread in the cell of its median."""
  cells: list[str] = []
  for name, value in zip(columns, row, strict=True):
    if not name.endswith(' ±'):
      cells.append(cell(value))
    elif value:
      cells[-1] += f' ± {cell(value)}'
  return cells


def _head(columns: Sequence[str]) -> list[str]:
  return [name for name in columns if not name.endswith(' ±')]


def _get(record: Mapping[str, Any], name: str) -> Any:
  value: Any = record
  for part in [name] if name in record else name.split('.'):
    value = value.get(part) if isinstance(value, Mapping) else None
  return value


def _latex_row(cells: Sequence[str]) -> str:
  text = (re.sub(r'[&%_#$]', r'\\\g<0>', c) for c in cells)
  return ' & '.join(text).replace('±', r'$\pm$') + r' \\'
