"""Runs an experiment over a grid, one process a point.

  python -m experiments.sweep --grid seed=0,1,2 --grid model.num_kv_heads=1,2 \
      --workdir=out/sweep -- --config=configs/compare.py:tiny

A point is a folder of the workdir with the experiment's files, its output in
`log.txt` and, last, `point.json`. Points whose `point.json` says so are done
and are skipped when the sweep is run again; a failed point is recorded, does
not stop the others, and is tried again. A grid name is a field of the config,
or with leading dashes a flag. Exit status 1 if any point failed.
"""

import itertools
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from experiments import launch
from kvjax.report import records

_GRID = flags.DEFINE_multi_string('grid', [], 'name=value,value,...')
_EXPERIMENT = flags.DEFINE_string('experiment', 'compare', 'Which to run.')
_WORKDIR = flags.DEFINE_string('workdir', 'out/sweep', 'Where points go.')
_TIMEOUT = flags.DEFINE_float('timeout', None, 'Seconds a point may take.')


def points(grid: Sequence[str]) -> list[dict[str, str]]:
  """Returns the product of `name=value,value` axes; commas in () do not split.

  Raises:
    ValueError: an axis has no name or no value, or comes twice.
  """
  axes: dict[str, list[str]] = {}
  for axis in grid:
    name, equals, values = axis.partition('=')
    found = re.findall(r'(?:[^,(]|\([^)]*\))+', values)
    if not name or not equals or not found:
      raise ValueError(
          f'grid={axis!r} must be name=value,value: a name and its values.'
      )
    if name in axes:
      raise ValueError(f'grid={name!r} is given twice. Put values in one axis.')
    axes[name] = found
  return [
      dict(zip(axes, values, strict=True))
      for values in itertools.product(*axes.values())
  ]


def command(
    experiment: str, point: Mapping[str, str], workdir: pathlib.Path,
    given: Sequence[str],
) -> list[str]:
  """Returns the command line of a point."""
  overrides = [
      f'{name}={value}' if name.startswith('-') else f'--config.{name}={value}'
      for name, value in point.items()
  ]
  return [sys.executable, '-m', f'experiments.{experiment}', *given,
          *overrides, f'--workdir={workdir}']


def folder(point: Mapping[str, str]) -> str:
  """Returns a file name for a point."""
  name = ','.join(f'{k.lstrip("-")}={v}' for k, v in point.items()) or 'all'
  return re.sub(r'[^\w.,=()+-]', '_', name)


def run_point(
    experiment: str, point: Mapping[str, str], workdir: pathlib.Path,
    given: Sequence[str], timeout: float | None = None,
) -> dict[str, Any]:
  """Runs a point unless it is done; returns its record."""
  place = workdir / folder(point)
  status = place / 'point.json'
  run = command(experiment, point, place, given)
  if status.exists():
    old = json.loads(status.read_text())
    if old['status'] == 'done' and old['command'][1:] == run[1:]:
      return old | {'skipped': True}
  place.mkdir(parents=True, exist_ok=True)
  start = time.perf_counter()
  with (place / 'log.txt').open('w') as log:
    try:
      code = subprocess.run(
          run, stdout=log, stderr=subprocess.STDOUT, cwd=launch.ROOT,
          timeout=timeout,
      ).returncode
    except subprocess.TimeoutExpired:
      code = f'longer than {timeout} s'
  record = {
      'record': 'point',
      'point': dict(point),
      'status': 'done' if code == 0 else 'failed',
      'code': code,
      'seconds': round(time.perf_counter() - start, 2),
      'command': run,
      'error': '' if code == 0 else _last_line(place / 'log.txt'),
  }
  status.write_text(json.dumps(record, indent=2))
  return record


def main(argv: list[str]) -> None:
  with launch.door():
    grid = points(_GRID.value)
    if not (launch.ROOT / 'experiments' / f'{_EXPERIMENT.value}.py').exists():
      raise ValueError(f'experiment={_EXPERIMENT.value!r} is unknown: name a '
                       'file of experiments/ without its ending.')
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  lines = workdir / 'sweep.jsonl'
  lines.write_text('')
  failed = 0
  for number, point in enumerate(grid, 1):
    found = run_point(
        _EXPERIMENT.value, point, workdir, argv[1:], _TIMEOUT.value)
    records.append(lines, found)
    failed += found['status'] == 'failed'
    state = 'skipped, done' if found.get('skipped') else found['status']
    print(f'{number}/{len(grid)} {folder(point)}: {state} '
          f'({found["seconds"]} s) {found["error"]}'.rstrip(), flush=True)
  if failed:
    raise SystemExit(f'{failed} of {len(grid)} points failed; see log.txt of '
                     f'each in {workdir}.')


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(errors='replace').strip().splitlines()
  return lines[-1] if lines else ''


def _parse(argv: list[str]) -> list[str]:
  cut = argv.index('--') if '--' in argv else len(argv)
  with launch.door():
    rest = flags.FLAGS(argv[:cut])
    if len(rest) > 1:
      raise ValueError(f'{rest[1]!r} is no flag: the flags of the experiment '
                       'come after --.')
  return [argv[0], *argv[cut + 1 :]]


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
