"""What a report is made of; each block shows itself in a terminal and in HTML.

Text may hold `code` between backticks. Nothing here computes a result.
"""

import base64
import dataclasses
import html
import pathlib
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol


class Block(Protocol):
  """One part of a report."""

  def terminal(self) -> Any:
    """Returns a rich renderable; None for nothing."""
    ...

  def html(self) -> str:
    """Returns HTML that loads nothing from elsewhere."""
    ...

  def markdown(self) -> str:
    """Returns Markdown."""
    ...


@dataclasses.dataclass(frozen=True)
class Heading:
  """A section of the report."""

  text: str

  def terminal(self):
    from rich.rule import Rule

    return Rule(_as_it_is(self.text, 'bold'), align='left', style='dim')

  def html(self):
    return f'<h2>{inline(self.text)}</h2>'

  def markdown(self):
    return f'## {self.text}'


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph."""

  text: str

  def terminal(self):
    from rich.markdown import Markdown

    return Markdown(without_controls(self.text), hyperlinks=False)

  def html(self):
    return f'<p>{inline(self.text)}</p>'

  def markdown(self):
    return self.text


@dataclasses.dataclass(frozen=True)
class Code:
  """Text as it is: a sample, a listing.

  Attributes:
    text: shown as it is.
    prompt: what comes before the text, in bold.
  """

  text: str
  prompt: str = ''

  def terminal(self):
    from rich.panel import Panel
    from rich.text import Text as RichText

    prompt = (without_controls(self.prompt), 'bold')
    return Panel(RichText.assemble(prompt, without_controls(self.text)))

  def html(self):
    prompt, text = html.escape(self.prompt), html.escape(self.text)
    return f'<pre><b>{prompt}</b>{text}</pre>'

  def markdown(self):
    lines = f'{self.prompt}{self.text}'.splitlines()
    return '\n'.join(f'    {line}' for line in lines)


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under named columns.

  Attributes:
    title: above the table.
    columns: names.
    rows: cells; numbers are formatted by `cell`.
    note: below the table.
    total: a last row, set off from those that it sums; empty for none.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  note: str = ''
  total: Sequence[Any] = ()

  @classmethod
  def of(
    cls,
    title: str,
    columns: Mapping[str, str | Callable[[Any], Any]],
    records: Iterable[Any],
    note: str = '',
  ) -> 'Table':
    """Returns a table with a row a record.

    Args:
      title: above the table.
      columns: by the name of a column, the field of a record in it, or a
        function of the record.
      records: mappings, or objects whose attributes are the fields.
      note: below the table.
    """
    rows = [[_get(record, x) for x in columns.values()] for record in records]
    return cls(title, tuple(columns), rows, note)

  def terminal(self):
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
      title=_as_it_is(self.title, 'bold'),
      title_justify='left',
      caption=_as_it_is(re.sub(r'[*`]', '', self.note), 'table.caption'),
      caption_justify='left',
      box=box.SIMPLE_HEAD,
    )
    for index, name in enumerate(self.columns):
      justify = 'right' if self._number(index) else 'left'
      table.add_column(_as_it_is(name), justify=justify)
    for row in self.rows:
      table.add_row(*(_as_it_is(cell(value)) for value in row))
    if self.total:
      table.add_section()
      table.add_row(*(_as_it_is(cell(x), 'bold') for x in self.total))
    return table

  def html(self):
    def line(tag: str, cells: Sequence[Any]) -> str:
      marked = ''
      for index, value in enumerate(cells):
        class_ = ' class="number"' if self._number(index) else ''
        marked += f'<{tag}{class_}>{inline(cell(value))}</{tag}>'
      return f'<tr>{marked}</tr>'

    body = ''.join(line('td', row) for row in self.rows)
    foot = f'<tfoot>{line("td", self.total)}</tfoot>' if self.total else ''
    note = f'<p class="note">{inline(self.note)}</p>' if self.note else ''
    # A table that is wider than the page scrolls in a box, also by keys.
    return (
      f'<figure><figcaption>{inline(self.title)}</figcaption>'
      f'<div class="scroll" tabindex="0"><table>'
      f'<thead>{line("th", self.columns)}</thead><tbody>{body}</tbody>{foot}'
      f'</table></div>{note}</figure>'
    )

  def markdown(self):
    rows = [*self.rows, *([self.total] if self.total else [])]
    table = markdown_table(
      self.columns,
      [[cell(value) for value in row] for row in rows],
      [self._number(index) for index in range(len(self.columns))],
    )
    parts = f'**{self.title}**', table, self.note
    return '\n\n'.join(filter(None, parts))

  def _number(self, index: int) -> bool:
    return are_numbers(cell(row[index]) for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG with a caption.

  Attributes:
    name: of its file, without the ending.
    png: its bytes.
    caption: below it; also what a reader who cannot see it gets.
  """

  name: str
  png: bytes = dataclasses.field(repr=False)
  caption: str

  def terminal(self):
    return None

  def html(self):
    data = base64.b64encode(self.png).decode()
    text = html.escape(self.caption.replace('`', ''), quote=True)
    return (
      f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
      f'<p class="note">{inline(self.caption)}</p></figure>'
    )

  def markdown(self):
    return f'![{self.caption}]({self.name}.png)'


def _get(record: Any, field: str | Callable[[Any], Any]) -> Any:
  if callable(field):
    return field(record)
  if isinstance(record, Mapping):
    return record.get(field)
  return getattr(record, field)


def cell(value: Any) -> str:
  """Returns a table cell: integers with separators, floats to 4 digits."""
  if value is None:
    return '-'
  if isinstance(value, bool):
    return 'yes' if value else 'NO'
  if isinstance(value, int):
    return f'{value:,}'
  if isinstance(value, float):
    return f'{value:,.0f}' if 1e4 <= abs(value) < 1e9 else f'{value:.4g}'
  return str(value)


def are_numbers(cells: Iterable[str]) -> bool:
  """Returns whether all cells of a column begin with a number or are empty.

  A product, '2 x 3', is a text.
  """
  number = r'(?!.*\d x \d)(x |[+-])?[\d.,]+|-?$'
  return all(re.match(number, text) for text in cells)


CONTROLS = r'\x00-\x08\x0b-\x1f\x7f-\x9f'
# Marks, embeddings, overrides and isolates (Unicode Standard Annex 9, 2.7).
BIDIRECTIONAL = r'\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069'


def without_controls(text: str) -> str:
  """Returns text that no terminal takes for a command.

  Names and texts are of other people: an escape sequence in one could set the
  clipboard or hide a line, and a bidirectional control shows letters in another
  order than they have. Ends of lines and tabs stay.
  """
  return re.sub(f'[{CONTROLS}{BIDIRECTIONAL}]', '', text)


def _as_it_is(text: str, style: str = '') -> Any:
  """Returns text for rich, which reads no markup in it."""
  from rich.text import Text as RichText

  return RichText(without_controls(text), style)


def inline(text: str) -> str:
  """Returns text as HTML, with `code`, **bold** and *italic* marked up."""
  text = html.escape(text)
  text = re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', text)
  text = re.sub(r'\*(\S.*?)\*', r'<i>\1</i>', text)
  return re.sub(r'`(.+?)`', r'<code>\1</code>', text)


def markdown_table(
  columns: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[bool]
) -> str:
  """Returns a Markdown table; `right` says which columns are set so."""
  rule = ['---:' if is_right else '---' for is_right in right]
  lines = [[x.replace('|', r'\|') for x in row] for row in (columns, *rows)]
  lines = [lines[0], rule, *lines[1:]]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def markdown(title: str, blocks: Iterable[Block]) -> str:
  """Returns a whole Markdown document."""
  parts = [f'# {title}', *(block.markdown() for block in blocks)]
  return without_controls('\n\n'.join(parts)) + '\n'


def page(title: str, blocks: Iterable[Block]) -> str:
  """Returns a whole HTML document, self-contained."""
  frame = pathlib.Path(__file__).with_name('page.html').read_text('utf-8')
  body = '\n'.join(block.html() for block in blocks)
  text = string.Template(frame).substitute(
    title=html.escape(title), heading=inline(title), body=body
  )
  return without_controls(text)  # A browser shows a control as a box.
