"""A grid of settings; each point is a process, and finished ones are kept."""

import hashlib
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.launch import ROOT
from kvjax.strict_json import parse_object


def points(grid: Sequence[str]) -> list[dict[str, str]]:
  """Returns the product of `name=value,value` axes; commas in () do not split.

  Raises:
    ValueError: an axis has no name, or comes twice; or a value is empty,
      comes twice, or opens a parenthesis and does not close it.
  """
  axes: dict[str, list[str]] = {}
  for axis in grid:
    name, _, values = axis.partition('=')
    choices = re.split(r',(?![^(]*\))', values)
    are_whole = all(c and c.count('(') == c.count(')') for c in choices)
    if not name or not are_whole or len(set(choices)) < len(choices):
      raise ValueError(
        f'grid={axis!r} must be name=value,value: a name and its values, none '
        'empty, none twice, every ( closed.'
      )
    if name in axes:
      raise ValueError(f'grid={name!r} is given twice. Put values in one axis.')
    axes[name] = choices
  return [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]


def folder(point: Mapping[str, str]) -> str:
  """Returns a file name for a point, of which no other point has the same.

  A name that is cut at 120 characters, or in which one is replaced, ends with
  a digest. So does a name with a capital, which some file systems do not tell
  from the small letter.
  """
  name = ','.join(f'{k.lstrip("-")}={v}' for k, v in point.items()) or 'all'
  plain = re.sub(r'[^\w.,=()+-]', '_', name, flags=re.ASCII)[:120]
  if plain == name.lower():
    return name
  digest = hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()
  return f'{plain}-{digest[:8]}'


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
    timeout: seconds after which the point, and every process that it has
      started, is ended and counts as failed.
  """
  status = place / 'point.json'
  old = _read_status(status)
  if old and old['status'] == 'done' and old['command'] == list(run):
    return old | {'skipped': True}
  start = time.perf_counter()

  def describe(code: int | str, error: str) -> dict[str, Any]:
    return {
      'record': 'point',
      'point': dict(point),
      'status': 'done' if code == 0 else 'failed',
      'code': code,
      'seconds': round(time.perf_counter() - start, 2),
      'command': list(run),
      'error': error,
    }

  try:
    place.mkdir(parents=True, exist_ok=True)
    status.unlink(missing_ok=True)  # the other files are about to change
    record = describe(*_run_to_its_end(run, place / 'log.txt', timeout))
    # A crash leaves the whole file or none.
    part = place / '.point.json.part'
    part.write_text(json.dumps(record, indent=2))
    part.replace(status)
  except OSError as failure:  # no such program, no room on the disk
    record = describe(str(failure), str(failure))
  return record


def _read_status(path: pathlib.Path) -> dict[str, Any]:
  """Returns what an earlier run recorded of a point; {} for no whole record."""
  try:
    old = parse_object(path.read_bytes(), path)
    if not {'status', 'command', 'seconds', 'error'} <= old.keys():
      raise ValueError(f'{path} is no record of a point.')
    return old
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    print(f'{error} The point is run again.', file=sys.stderr)
    return {}


def _run_to_its_end(
  run: Sequence[str], log: pathlib.Path, timeout: float | None
) -> tuple[int | str, str]:
  """Returns the exit status of a command line, and why it failed or ''."""
  with log.open('w') as file:
    # A session is a group of processes, which can be ended together.
    process = subprocess.Popen(
      run, stdout=file, stderr=file, cwd=ROOT, start_new_session=True
    )
    try:
      code = process.wait(timeout)
    except subprocess.TimeoutExpired:
      reason = f'timed out after {timeout} s'
      return reason, reason
    finally:
      if process.returncode is None:  # after an interrupt as well
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  lines = log.read_text(errors='replace').strip().splitlines()
  return code, lines[-1] if code and lines else ''
