"""Pages from templates: Markdown with blocks that show records.

A fenced block whose first word is one of these is replaced; all else stays.

    ```source benchmark_cpu
    ```

becomes the command, machine, date, commit and file of that run. Blocks below
it show its records:

    ```table record=step name=kvjax*
    | what | ms |
    | --- | ---: |
    | {name} | {seconds:ms} |
    ```

repeats its last line once a record that meets the conditions
(`recordings.select_rows`), with the expressions in braces replaced
(`expressions`); the lines above the last one stay as they are. Blocks that
follow each other without a blank line make one table.

    ```text record=quality
    The lowest of {count} values is {min bits:.2f}.
    ```

becomes a paragraph about all selected records as one group. Before its lines a
block may set options, one a line: `records: NAME` shows another run than that
of the source above; `by: FIELD, FIELD` makes a row of a group of records, and
`across: FIELD` the field whose values become columns
(`recordings.group_rows`); `sort: FIELD` or `sort: -FIELD` and `limit: COUNT`
order and cut the rows.
"""

import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence

from experiments.results_pages.expressions import fill
from experiments.results_pages.recordings import (
  Record,
  Recording,
  describe_source,
  group_rows,
  read_recording,
  select_rows,
)

WIDTH = 80
_BLOCK = re.compile(
  r'^```(source|table|text)(.*)\n'
  r'((?:(?:records|by|across|sort|limit): .*\n)*)'
  r'((?:.*\n)*?)```$',
  re.M,
)


def render_template(template: pathlib.Path, results: pathlib.Path) -> str:
  """Returns the text of a template, its blocks replaced.

  Args:
    template: a file.
    results: the folder of the records.
  """
  source: Recording | None = None

  def replace_block(block: re.Match[str]) -> str:
    nonlocal source
    kind, words, settings, body = block.groups()
    if kind == 'source':
      source = read_recording(results, words.strip())
      return describe_source(source)
    options = dict(line.split(': ', 1) for line in settings.splitlines())
    lines = body.splitlines()
    if not lines:
      raise ValueError(f'{template}: a {kind} has nothing to show.')
    name = options.get('records')
    recording = read_recording(results, name) if name else source
    if recording is None:
      raise ValueError(f'{template}: a {kind} stands above the first source.')
    rows = select_rows(recording, words)
    if kind == 'table':
      return _table(rows, options, lines)
    return _text(rows, lines)

  return _BLOCK.sub(replace_block, template.read_text('utf-8'))


def _text(rows: Sequence[Record], lines: Sequence[str]) -> str:
  (summary,) = group_rows(rows, by=())
  text = fill(' '.join(lines), summary)
  return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _table(
  rows: Sequence[Record], options: Mapping[str, str], lines: Sequence[str]
) -> str:
  if 'by' in options:
    fields = [field.strip() for field in options['by'].split(',')]
    rows = group_rows(rows, fields, options.get('across', ''))
  if 'sort' in options:
    order = options['sort']
    field = order.removeprefix('-')
    rows = sorted(rows, key=lambda row: row[field], reverse=order != field)
  if 'limit' in options:
    rows = rows[: int(options['limit'])]
  *head, line = lines
  body = [fill(line, row) for row in rows]
  return '\n'.join([*head, *body])
