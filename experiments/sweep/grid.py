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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from experiments.launch import ROOT
from kvjax.strict_json import parse_object

# Gets the seconds that a running point has taken, and the end of its log.
Watch = Callable[[float, str], None]
TAIL = 4096  # bytes of a log in which its last line is looked for


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
  watch: Watch | None = None,
) -> dict[str, Any]:
  """Runs a point unless it is done; returns its record.

  Args:
    run: the command line.
    point: settings of the point, for its record.
    place: folder of `log.txt` and `point.json`; created if missing.
    timeout: seconds after which the point, and every process that it has
      started, is ended and counts as failed.
    watch: called every second while the point runs.
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
    record = describe(*_run_to_its_end(run, place / 'log.txt', timeout, watch))
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
  run: Sequence[str],
  log: pathlib.Path,
  timeout: float | None,
  watch: Watch | None,
) -> tuple[int | str, str]:
  """Returns the exit status of a command line, and why it failed or ''."""
  # A second reader: one that shared the place in the file would move it.
  with log.open('wb') as file, log.open('rb') as written:
    # A session is a group of processes, which can be ended together.
    process = subprocess.Popen(
      run,
      stdout=file,
      stderr=file,
      cwd=ROOT,
      start_new_session=True,
      env=os.environ | {'PYTHONUNBUFFERED': '1'},  # the log grows as it runs
    )
    try:
      code = _wait(
        process, written, timeout, watch or (lambda seconds, line: None)
      )
    except subprocess.TimeoutExpired:
      reason = f'timed out after {timeout} s'
      return reason, reason
    finally:
      if process.returncode is None:  # after an interrupt as well
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code, _last_line(written) if code else ''


def _wait(
  process: subprocess.Popen[bytes],
  log: BinaryIO,
  timeout: float | None,
  watch: Watch,
) -> int:
  """Returns the exit status of a process that is watched every second.

  Raises:
    subprocess.TimeoutExpired: it takes longer than `timeout` seconds.
  """
  start = time.perf_counter()
  while True:
    seconds = time.perf_counter() - start
    rest = 1.0 if timeout is None else min(1.0, timeout - seconds)
    try:
      return process.wait(max(rest, 0.0))
    except subprocess.TimeoutExpired:
      seconds = time.perf_counter() - start
      if timeout is not None and seconds >= timeout:
        raise
      watch(seconds, _last_line(log))


def _last_line(log: BinaryIO) -> str:
  size = log.seek(0, os.SEEK_END)
  log.seek(max(0, size - TAIL))
  lines = log.read().decode(errors='replace').strip().splitlines()
  return lines[-1] if lines else ''
