"""What a report is made of; each block shows itself in a terminal and in HTML.

Text may hold `code` between backticks. Nothing here computes a result.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol


class Block(Protocol):
  """One part of a report."""

  def terminal(self) -> Any:
    """Returns a rich renderable; None for nothing."""
    ...

  def html(self) -> str:
    """Returns HTML that refers to nothing outside itself."""
    ...


@dataclasses.dataclass(frozen=True)
class Heading:
  """A section of the report."""

  text: str

  def terminal(self):
    from rich.rule import Rule

    return Rule(f'[bold]{self.text}', align='left', style='dim')

  def html(self):
    return f'<h2>{inline(self.text)}</h2>'


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph."""

  text: str

  def terminal(self):
    from rich.markdown import Markdown

    return Markdown(self.text)

  def html(self):
    return f'<p>{inline(self.text)}</p>'


@dataclasses.dataclass(frozen=True)
class Code:
  """Text as it is: a sample, a listing.

  Attributes:
    text: shown as it is.
    prompt: leading part that was given, set apart.
  """

  text: str
  prompt: str = ''

  def terminal(self):
    from rich.panel import Panel
    from rich.text import Text as RichText

    return Panel(RichText.assemble((self.prompt, 'bold'), self.text))

  def html(self):
    prompt, text = html.escape(self.prompt), html.escape(self.text)
    return f'<pre><b>{prompt}</b>{text}</pre>'


_NUMBER = re.compile(r'(x |[+-])?[\d.,]+|-$')


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of cells under named columns.

  Attributes:
    title: above the table.
    columns: names.
    rows: cells; numbers are formatted by `cell`.
    note: below the table.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  note: str = ''

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
      records: mappings, or anything if all columns are functions.
      note: below the table.
    """
    rows = [
      [
        get(record) if callable(get) else record.get(get)
        for get in columns.values()
      ]
      for record in records
    ]
    return cls(title, tuple(columns), rows, note)

  def terminal(self):
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(
      title=self.title,
      title_justify='left',
      title_style='bold',
      caption=re.sub(r'[*`]', '', self.note) or None,
      caption_justify='left',
      box=box.SIMPLE_HEAD,
    )
    for index, name in enumerate(self.columns):
      table.add_column(name, justify='right' if self._number(index) else 'left')
    for row in self.rows:
      table.add_row(*map(cell, row))
    return table

  def html(self):
    head = ''.join(
      f'<th{self._align(i)}>{inline(name)}</th>'
      for i, name in enumerate(self.columns)
    )
    body = ''.join(
      '<tr>'
      + ''.join(
        f'<td{self._align(i)}>{inline(cell(value))}</td>'
        for i, value in enumerate(row)
      )
      + '</tr>'
      for row in self.rows
    )
    note = f'<p class="note">{inline(self.note)}</p>' if self.note else ''
    return (
      f'<figure><figcaption>{inline(self.title)}</figcaption>'
      f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
      f'{note}</figure>'
    )

  def _number(self, index: int) -> bool:
    return all(_NUMBER.match(cell(row[index])) for row in self.rows)

  def _align(self, index: int) -> str:
    return ' class="number"' if self._number(index) else ''


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


def inline(text: str) -> str:
  """Returns text as HTML, with `code`, **bold** and *italic* marked up."""
  text = html.escape(text)
  text = re.sub(r'\*\*(.+?)\*\*', r'<b>\1</b>', text)
  text = re.sub(r'\*(\S.*?)\*', r'<i>\1</i>', text)
  return re.sub(r'`(.+?)`', r'<code>\1</code>', text)


def page(title: str, blocks: Iterable[Block]) -> str:
  """Returns a whole HTML document, self-contained."""
  body = '\n'.join(block.html() for block in blocks)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n'
    f'<body><main><h1>{inline(title)}</h1>\n{body}\n</main></body></html>\n'
  )


_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1d2733;
  font: 16px/1.55 system-ui, 'Segoe UI', 'Helvetica Neue', sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid #d8dee6; }
figure { margin: 1.2rem 0; overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
table { border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #1d2733; font-weight: 600; }
tbody tr:nth-child(even) { background: #f5f7fa; }
.number { text-align: right; }
.note { color: #55606e; font-size: .9rem; margin: .4rem 0 0; }
img { max-width: 100%; height: auto; }
code { font: .92em ui-monospace, Menlo, Consolas, monospace;
  background: #f0f3f7; padding: .05em .3em; border-radius: 3px; }
pre { background: #f5f7fa; border: 1px solid #d8dee6; border-radius: 6px;
  padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .88rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
"""
