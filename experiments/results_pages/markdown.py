"""Pieces of a results page: text, tables, and where a record comes from."""

import dataclasses
import pathlib
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import records
from experiments.reporting.blocks import cell

Record = dict[str, Any]
WIDTH = 80
SPEED_WORDS = (
  '"2x faster than X" means that X takes twice as long in the same run; "2x '
  'slower" means that X takes half as long. "Of the floor" is the share of the '
  'read bandwidth that was reached: 1.00 would be the time of reading the '
  'weights and the filled cache once, at the speed at which a sum read memory '
  'after the same race.'
)
COMMIT_WORDS = 'A `+` after a commit means that the tree had changes.'
# Modules that have moved since their record was written.
MOVED = {'experiments.aot_h200': 'experiments.benchmark.gpu.aot_h200'}


@dataclasses.dataclass(frozen=True)
class Recording:
  """One run of an experiment.

  Attributes:
    path: of the file that holds it.
    run: its first record: command, environment, configuration.
    rows: its other records, in order.
  """

  path: pathlib.Path
  run: Mapping[str, Any]
  rows: Sequence[Record]

  def select(self, record: str, **fields: Any) -> list[Record]:
    """Returns the records of a kind whose fields have these values."""
    return [
      row
      for row in self.rows
      if row['record'] == record
      and all(row.get(name) == value for name, value in fields.items())
    ]


def recordings(path: pathlib.Path) -> list[Recording]:
  """Returns the runs that a file holds, in order."""
  runs: list[Recording] = []
  for record in records.read([path]):
    if record['record'] == 'run':
      runs.append(Recording(path, record, []))
    else:
      previous = runs[-1]
      runs[-1] = dataclasses.replace(previous, rows=[*previous.rows, record])
  return runs


def document(title: str, *parts: str) -> str:
  """Returns a page: its title, who wrote it, and its parts."""
  origin = paragraph(
    'This page is written by `python -m experiments.results_pages` from the '
    'files in `results/` that it names. Do not edit it.'
  )
  return '\n\n'.join([f'# {title}', origin, *parts]) + '\n'


def paragraph(text: str) -> str:
  """Returns a paragraph in lines of at most 80 columns."""
  return textwrap.fill(
    text, WIDTH, break_long_words=False, break_on_hyphens=False
  )


def provenance(recording: Recording) -> str:
  """Returns where the numbers of a run come from, as a list."""
  environment = recording.run['environment']
  recorded: list[str] = recording.run['command']
  command = [MOVED.get(word, word) for word in recorded]
  device = environment['device']
  machine = f'{environment["cores"]} cores of {environment["processor"]}'
  if environment['platform'] != 'cpu':
    machine = f'{environment["devices"]} {device}, {machine}'
  versions = {'JAX': environment['jax'], **recording.run.get('peers', {})}
  items = (
    f'command: `{" ".join(map(_quoted, command))}`',
    f'machine: {machine}',
    f'date: {environment["time"][:10]}, commit: `{environment["commit"]}`, '
    + ', '.join(f'{name} {version}' for name, version in versions.items()),
    f'record: `results/{recording.path.name}`',
  )
  return '\n'.join(f'- {item}' for item in items)


def _quoted(word: str) -> str:
  """Returns a word of a command as a shell reads it."""
  return f'"{word}"' if "'" in word else shlex.quote(word)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a Markdown table; columns of numbers are aligned to the right."""
  shown = [[_escaped(cell(value)) for value in row] for row in rows]
  numeric = [
    all(_NUMBER.match(text) for text in column)
    for column in zip(*shown, strict=True)
  ]
  rule = ['---:' if right else '---' for right in numeric]
  lines = [list(columns), rule, *shown]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


_NUMBER = re.compile(r'[\d.,]+(e-?\d+)?([x:]? |x?$)|-?$')


def _escaped(text: str) -> str:
  return text.replace('|', '\\|')


def relative(times: float | None) -> str:
  """Returns a ratio in words.

  Args:
    times: the time of the peer over ours; None where it took no part.
  """
  if times is None:
    return ''
  faster = times >= 1
  ratio = times if faster else 1 / times
  digits = 2 if ratio < 10 else 1
  return f'{ratio:.{digits}f}x {"faster" if faster else "slower"}'


def milliseconds(seconds: float) -> str:
  """Returns a time in milliseconds, to three digits."""
  return significant(1e3 * seconds)


def microseconds(seconds: float) -> str:
  """Returns a time in microseconds, to three digits."""
  return significant(1e6 * seconds)


def significant(value: float) -> str:
  """Returns a number to three digits, larger ones as integers."""
  if value >= 100:
    return f'{value:,.0f}'
  if value >= 10:
    return f'{value:.1f}'
  return f'{value:.2f}' if value >= 1 else f'{value:.3f}'


def share(value: float) -> str:
  """Returns a share with two decimals."""
  return f'{value:.2f}'


def megabytes(count: float) -> str:
  """Returns bytes in megabytes of 10^6, to three digits."""
  return significant(count / 1e6)


def span(values: Sequence[float]) -> str:
  """Returns the smallest and the largest of bandwidths, in GB/s."""
  low, high = min(values) / 1e9, max(values) / 1e9
  return f'{low:.1f} to {high:.1f} GB/s'
