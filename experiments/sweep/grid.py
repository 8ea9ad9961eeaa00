"""A grid of settings; each point is a process, and finished ones are kept."""

import itertools
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.launch import ROOT


def points(grid: Sequence[str]) -> list[dict[str, str]]:
  """Returns the product of `name=value,value` axes; commas in () do not split.

  Raises:
    ValueError: an axis has no name or no value, or comes twice.
  """
  axes: dict[str, list[str]] = {}
  for axis in grid:
    name, equals, values = axis.partition('=')
    choices = re.findall(r'(?:[^,(]|\([^)]*\))+', values)
    if not name or not equals or not choices:
      raise ValueError(
        f'grid={axis!r} must be name=value,value: a name and its values.'
      )
    if name in axes:
      raise ValueError(f'grid={name!r} is given twice. Put values in one axis.')
    axes[name] = choices
  return [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]


def folder(point: Mapping[str, str]) -> str:
  """Returns a file name for a point."""
  name = ','.join(f'{k.lstrip("-")}={v}' for k, v in point.items()) or 'all'
  return re.sub(r'[^\w.,=()+-]', '_', name)


def overrides(point: Mapping[str, str]) -> list[str]:
  """Returns the flags of a point."""
  return [
    f'{name}={value}' if name.startswith('-') else f'--config.{name}={value}'
    for name, value in point.items()
  ]


def run_point(
  run: Sequence[str],
  point: Mapping[str, str],
  place: pathlib.Path,
  timeout: float | None = None,
) -> dict[str, Any]:
  """Runs a point unless it is done; returns its record.

  Args:
    run: the command line.
    point: settings of the point, for its record.
    place: folder of `log.txt` and `point.json`; created if missing.
    timeout: seconds after which the process is ended and counts as failed.
  """
  status = place / 'point.json'
  if status.exists():
    old = json.loads(status.read_text())
    if old['status'] == 'done' and old['command'] == list(run):
      return old | {'skipped': True}
  place.mkdir(parents=True, exist_ok=True)
  start = time.perf_counter()
  with (place / 'log.txt').open('w') as log:
    try:
      code = subprocess.run(
        run, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, timeout=timeout
      ).returncode
    except subprocess.TimeoutExpired:
      code = f'longer than {timeout} s'
  record = {
    'record': 'point',
    'point': dict(point),
    'status': 'done' if code == 0 else 'failed',
    'code': code,
    'seconds': round(time.perf_counter() - start, 2),
    'command': list(run),
    'error': '' if code == 0 else _last_line(place / 'log.txt'),
  }
  status.write_text(json.dumps(record, indent=2))
  return record


def _last_line(path: pathlib.Path) -> str:
  lines = path.read_text(errors='replace').strip().splitlines()
  return lines[-1] if lines else ''
