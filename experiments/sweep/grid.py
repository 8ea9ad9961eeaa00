"""A grid of settings; each point is a process, and finished ones are kept."""

import hashlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from experiments.launch import ROOT
from experiments.sweep import claim
from kvjax.strict_json import parse_object

# Gets the seconds that a running point has taken, and the end of its log.
Watch = Callable[[float, str], None]
Record = dict[str, Any]
TAIL = 4096  # bytes of a log in which its last line is looked for


class Call(NamedTuple):
  """What `run_point` is given of a point, wherever it runs."""

  run: list[str]
  point: dict[str, str]
  place: pathlib.Path
  timeout: float | None = None


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
  *,
  owner: str = '',
  task: int = 0,
) -> Record:
  """Runs a point unless it is done or another process runs it.

  Args:
    run: the command line.
    point: settings of the point, for its record.
    place: folder of `log.txt` and `point.json`; created if missing.
    timeout: seconds after which the point, and every process that it has
      started, is ended and counts as failed.
    watch: called every second while the point runs.
    owner: who claims the point; '' for this process.
    task: number of this process among those that run the point together. The
      first one claims it and writes `point.json`.

  Returns:
    The record of the point.
  """
  if done := find_done(run, place):
    return done
  start = time.perf_counter()
  # Two containers may agree in the first two.
  process = f'process {os.getpid()} of {socket.gethostname()}, {uuid.uuid4()}'
  owner = owner or process
  watches = [watch] if watch else []
  try:
    place.mkdir(parents=True, exist_ok=True)
    if task:
      claim.check(place, owner)
      log = place / f'log-{task}.txt'
      end = _run_to_its_end(run, log, timeout, watches)
      return describe(run, point, *end, start=start)
    with claim.claimed(place, owner) as keep:
      # Another process may have run it since.
      if done := find_done(run, place, quiet=True):
        return done
      status = place / 'point.json'
      status.unlink(missing_ok=True)  # the other files are about to change
      watches.append(lambda seconds, line: keep())
      end = _run_to_its_end(run, place / 'log.txt', timeout, watches)
      record = describe(run, point, *end, start=start)
      keep()
      # A crash leaves the whole file or none.
      part = place / '.point.json.part'
      part.write_text(json.dumps(record, indent=2))
      part.replace(status)
  except claim.ClaimedError as other:
    record = describe(run, point, 'claimed', str(other), start=start)
    record['status'] = 'claimed'
  except OSError as failure:  # no such program, no room on the disk
    record = describe(run, point, str(failure), str(failure), start=start)
  return record


def describe(
  run: Sequence[str],
  point: Mapping[str, str],
  code: int | str,
  error: str,
  *,
  start: float,
) -> Record:
  """Returns the record of a point that ended with a status or an error.

  Args:
    run: the command line.
    point: its settings.
    code: exit status, or why there is none.
    error: why the point failed, or ''.
    start: `time.perf_counter()` at its start.
  """
  return {
    'record': 'point',
    'point': dict(point),
    'status': 'done' if code == 0 else 'failed',
    'code': code,
    'seconds': round(time.perf_counter() - start, 2),
    'command': list(run),
    'error': error,
  }


def find_done(
  run: Sequence[str], place: pathlib.Path, *, quiet: bool = False
) -> Record:
  """Returns the record of a point that is done; {} for one that is not.

  Args:
    run: the command line, which must be that of the record.
    place: folder of the point.
    quiet: whether nothing is printed about a record that is broken.
  """
  path = place / 'point.json'
  try:
    old = parse_object(path.read_bytes(), path)
    if not {'status', 'command', 'seconds', 'error'} <= old.keys():
      raise ValueError(f'{path} is no record of a point.')
  except FileNotFoundError:
    return {}
  except (OSError, ValueError) as error:
    if not quiet:
      print(f'{error} The point is run again.', file=sys.stderr)
    return {}
  is_done = old['status'] == 'done' and old['command'] == list(run)
  return old | {'skipped': True} if is_done else {}


def _run_to_its_end(
  run: Sequence[str],
  log: pathlib.Path,
  timeout: float | None,
  watches: Sequence[Watch],
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
      code = _wait(process, written, timeout, watches)
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
  watches: Sequence[Watch],
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
      line = _last_line(log)
      for watch in watches:
        watch(seconds, line)


def _last_line(log: BinaryIO) -> str:
  size = log.seek(0, os.SEEK_END)
  log.seek(max(0, size - TAIL))
  lines = log.read().decode(errors='replace').strip().splitlines()
  return lines[-1] if lines else ''
