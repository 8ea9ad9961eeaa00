r"""Turns JSON lines of any experiments into tables for a paper.

  python -m experiments.aggregate --where=record=quality --by=variant,cache \
      --value=bits,held_per_token --format=latex out/sweep/*/compare.jsonl
  python -m experiments.aggregate --where=record=quality --by=variant \
      --columns=cache --value=bits out/sweep/*/compare.jsonl

A row is a group: the median over its records and half their range (±), rounded
to the second digit of the latter. The second command makes a column a cache.
Formats: markdown, csv (all digits, spreads in columns of theirs) and latex
(booktabs).
"""

import functools
import pathlib

from absl import flags

from experiments import launch
from experiments.aggregate import summary
from experiments.reporting import records
from experiments.reporting.blocks import without_controls

_BY = flags.DEFINE_list('by', ['variant', 'cache'], 'Fields of a group.')
_COLUMNS = flags.DEFINE_string(
  'columns', '', 'Field each of whose values gets columns.'
)
_VALUE = flags.DEFINE_list('value', ['bits'], 'Numeric fields.')
_WHERE = flags.DEFINE_multi_string('where', [], 'field=value to select by.')
_FORMAT = flags.DEFINE_list('format', ['markdown'], 'markdown, csv, latex.')
_CAPTION = flags.DEFINE_string('caption', '', 'LaTeX before what ± means.')
_LABEL = flags.DEFINE_string('label', '', r'Of the LaTeX table, for \ref.')
_OUT = flags.DEFINE_string('out', None, 'Path without ending; default stdout.')
_ENDINGS = {'markdown': '.md', 'csv': '.csv', 'latex': '.tex'}


def conditions(where: list[str]) -> dict[str, str]:
  """Returns field -> value of `field=value` texts."""
  pairs = {}
  for text in where:
    name, equals, value = text.partition('=')
    if not name or not equals:
      raise ValueError(f'where={text!r} must be field=value.')
    pairs[name] = value
  return pairs


def tables(paths: list[str]) -> dict[str, str]:
  """Returns the table in each wanted format."""
  if not paths:
    raise ValueError('No files: name the .jsonl files to aggregate.')
  for name in _FORMAT.value:
    if name not in summary.FORMATS:
      raise ValueError(
        f'format={name!r} is unknown; known: {", ".join(summary.FORMATS)}.'
      )
  if (_CAPTION.value or _LABEL.value) and 'latex' not in _FORMAT.value:
    raise ValueError('caption and label are of LaTeX: add --format=latex.')
  table = summary.summarize(
    records.read(map(pathlib.Path, paths)),
    _BY.value,
    _VALUE.value,
    conditions(_WHERE.value),
    _COLUMNS.value,
  )
  latex = functools.partial(
    summary.latex, caption=_CAPTION.value, label=_LABEL.value
  )
  formats = summary.FORMATS | {'latex': latex}
  return {name: formats[name](table) for name in _FORMAT.value}


def main(argv: list[str]) -> None:
  with launch.door():
    text_of = tables(argv[1:])
  for name, text in text_of.items():
    if _OUT.value is None:
      print(without_controls(text))
      continue
    path = pathlib.Path(_OUT.value + _ENDINGS[name])
    with records.writing_to(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text, encoding='utf-8')
    print(path)


if __name__ == '__main__':
  launch.run(main, arguments=True, computes=False)
