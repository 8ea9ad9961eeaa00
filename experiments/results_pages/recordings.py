"""Runs of experiments as files of results/ hold them: read, select, group."""

import dataclasses
import fnmatch
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting import records
from experiments.reporting.groups import grouped

Record = dict[str, Any]
# Experiments that have another name today than when their record was written.
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
  run: Record
  rows: list[Record]


def read_recording(results: pathlib.Path, name: str) -> Recording:
  """Returns a run.

  Args:
    results: the folder of the files.
    name: of a file without its ending; `name#2` is the second run of a file
      that holds several.

  Raises:
    ValueError: the file holds several runs and the name does not say which.
  """
  stem, _, number = name.partition('#')
  path = results / f'{stem}.jsonl'
  runs: list[Recording] = []
  for record in records.read([path]):
    if record['record'] == 'run':
      runs.append(Recording(path, record, []))
    else:
      runs[-1].rows.append(record)
  if len(runs) > 1 and not number:
    raise ValueError(f'{path} holds {len(runs)} runs: write {stem}#1 or above.')
  return runs[int(number or 1) - 1]


def describe_source(recording: Recording) -> str:
  """Returns where the numbers of a run come from, as a Markdown list."""
  environment = recording.run['environment']
  words: list[str] = recording.run['command']
  command = ' '.join(_quote(MOVED.get(word, word)) for word in words)
  machine = f'{environment["cores"]} cores of {environment["processor"]}'
  if environment['platform'] != 'cpu':
    device = f'{environment["devices"]} {environment["device"]}'
    machine = f'{device}, {machine}'
  versions = {'JAX': environment['jax'], **recording.run.get('peers', {})}
  items = (
    f'command: `{command}`',
    f'machine: {machine}',
    f'date: {environment["time"][:10]}, commit: `{environment["commit"]}`, '
    + ', '.join(f'{name} {version}' for name, version in versions.items()),
    f'record: `results/{recording.path.name}`',
  )
  return '\n'.join(f'- {item}' for item in items)


def _quote(word: str) -> str:
  """Returns a word of a command as a shell reads it."""
  return f'"{word}"' if "'" in word else shlex.quote(word)


def select_rows(recording: Recording, conditions: str) -> list[Record]:
  """Returns the records that meet all conditions, each with all fields.

  A field that some of these records lack is None in them. The field `run` is
  the first record of the run.

  Args:
    recording: a run.
    conditions: words as of a shell: `field=pattern` and `field!=pattern`
      compare text, where * is any text; `field>=number` and `field<=number`
      compare numbers. A record without the field meets none but `!=`.

  Raises:
    ValueError: no record meets them.
  """
  words = shlex.split(conditions)
  chosen = [r for r in recording.rows if all(_meets(r, word) for word in words)]
  if not chosen:
    raise ValueError(f'{recording.path.name} has no record with {conditions}.')
  absent = {name: None for row in chosen for name in row}
  return [absent | row | {'run': recording.run} for row in chosen]


def _meets(record: Mapping[str, Any], condition: str) -> bool:
  parts = re.fullmatch(r'(\w+)(!=|>=|<=|=)(.*)', condition)
  if parts is None:
    raise ValueError(f'{condition!r} is no condition: write field=pattern.')
  field, comparison, wanted = parts.groups()
  if field not in record:
    return comparison == '!='
  value = record[field]
  if comparison == '>=':
    return value >= float(wanted)
  if comparison == '<=':
    return value <= float(wanted)
  return fnmatch.fnmatchcase(str(value), wanted) == (comparison == '=')


def group_rows(
  rows: Sequence[Record], by: Sequence[str], across: str = ''
) -> list[Record]:
  """Returns one row a group, in order of appearance.

  Args:
    rows: records.
    by: fields that are equal within a group.
    across: a field that differs within a group; '' for none. In the row of a
      group this field maps each of its values, as text, to the record with it.

  Returns:
    The first record of each group with the fields `members`, all records of
    the group, and `count`, how many they are.
  """
  groups = grouped(rows, lambda row: tuple(row[name] for name in by))
  merged = []
  for members in groups.values():
    row = {**members[0], 'members': members, 'count': len(members)}
    if across:
      row[across] = {str(member[across]): member for member in members}
    merged.append(row)
  return merged
