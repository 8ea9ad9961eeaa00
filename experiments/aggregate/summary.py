"""Median and spread of a field over repeats, as Markdown, CSV or LaTeX."""

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.reporting.blocks import are_numbers, cell
from experiments.reporting.groups import grouped, median_and_spread

Row = list[Any]
_LATEX = str.maketrans(
  {sign: f'\\{sign}' for sign in '&%_#${}'}
  | {
    '\\': r'\textbackslash{}',
    '^': r'\textasciicircum{}',
    '~': r'\textasciitilde{}',
    '±': r'$\pm$',
  }
)


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
  key = lambda record: tuple(_get(record, name) for name in by)
  kept = [r for r in wanted if None not in key(r) and _numbers([r], values)]
  if not all(_numbers(kept, [name]) for name in values):
    known = sorted({name for record in wanted for name in record})
    raise ValueError(
      f'by={",".join(by)} value={",".join(values)}: not all are fields of the '
      f'{len(wanted)} selected records; theirs: {", ".join(known) or "none"}.'
    )
  columns = [*by, *(name for v in values for name in (v, f'{v} ±')), 'n']
  rows = []
  for shared, group in grouped(kept, key).items():
    repeats = [_numbers(group, [name]) for name in values]
    figures = itertools.chain(*map(median_and_spread, repeats))
    rows.append([*shared, *figures, len(group)])
  return columns, rows


def markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a Markdown table, spreads joined to their medians."""
  head, *body = _joined(columns, rows)
  lines = [head, ['---'] * len(head), *body]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def latex(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a LaTeX tabular (booktabs), spreads joined to their medians."""
  cells = _joined(columns, rows)
  head, *body = map(_latex_row, cells)
  lines = [r'\toprule', head, r'\midrule', *body, r'\bottomrule']
  inside = '\n'.join(lines)
  turned = zip(*cells[1:], strict=True)
  align = ''.join('r' if are_numbers(column) else 'l' for column in turned)
  return f'\\begin{{tabular}}{{{align}}}\n{inside}\n\\end{{tabular}}\n'


def comma_separated(columns: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns CSV, every number in full."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  writer.writerows(rows)
  return text.getvalue()


FORMATS = {'markdown': markdown, 'csv': comma_separated, 'latex': latex}


def _joined(columns: Sequence[str], rows: Sequence[Row]) -> list[list[str]]:
  """Returns head and rows as text, each spread in the cell of its median."""
  lines = [[name for name in columns if not name.endswith(' ±')]]
  for row in rows:
    cells: list[str] = []
    for index, (name, value) in enumerate(zip(columns, row, strict=True)):
      if not name.endswith(' ±'):
        cells.append(cell(value))
      elif value:
        cells[-1] = _with_spread(row[index - 1], value)
    lines.append(cells)
  return lines


def _with_spread(median: float, spread: float) -> str:
  """Returns both with equal decimals: the larger has four digits."""
  larger = max(abs(median), spread)
  if not math.isfinite(larger):
    return f'{cell(median)} ± {cell(spread)}'
  decimals = max(0, 3 - math.floor(math.log10(larger)))
  return f'{median:,.{decimals}f} ± {spread:,.{decimals}f}'


def _numbers(
  records: Iterable[Mapping[str, Any]], names: Iterable[str]
) -> list[float]:
  """Returns the values of fields, where a record has them."""
  fields = [_get(record, name) for record in records for name in names]
  return [float(value) for value in fields if value is not None]


def _get(record: Mapping[str, Any], name: str) -> Any:
  value: Any = record
  for part in [name] if name in record else name.split('.'):
    value = value.get(part) if isinstance(value, Mapping) else None
  return value


def _latex_row(cells: Sequence[str]) -> str:
  return ' & '.join(text.translate(_LATEX) for text in cells) + r' \\'
