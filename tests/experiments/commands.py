"""Commands of experiments, each a process forked after all imports.

Importing takes three seconds and a refusal almost none, so all command lines
that are refused share one import. A child sees what `python -m` gives it.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = (
  'matplotlib.figure',
  'experiments.launch',
  'experiments.compare.pace',
  'experiments.compare.study',
  'experiments.compare.sample',
  'experiments.compare.findings',
  'experiments.measuring.small_example',
)
FORK = f"""
import importlib, json, os, runpy, sys
for name in {HEAVY!r}:
  importlib.import_module(name)
for line in sys.stdin:
  module, flags, out, err = json.loads(line)
  child = os.fork()
  if child == 0:
    for fd, path in ((1, out), (2, err)):
      os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), fd)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    os._exit(0)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
  """How a command ended: its status and what it wrote."""

  code: int
  out: str
  err: str


def start(*command: str) -> subprocess.Popen:
  """Starts an interpreter on the CPU that logs compilations."""
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {'JAX_LOG_COMPILES': '1', 'JAX_PLATFORMS': 'cpu'},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


class Commands:
  """Runs `python -m experiments.<module> <flags>` without its imports."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._process = start('-c', FORK)

  def __call__(self, module: str, *flags: str) -> Ended:
    files = [self._folder / name for name in ('out', 'err')]
    for file in files:
      file.unlink(missing_ok=True)
    request = [f'experiments.{module}', list(flags), *map(str, files)]
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    code = int(self._process.stdout.readline())
    return Ended(code, *(file.read_text() for file in files))

  def end(self) -> None:
    self._process.communicate(timeout=60)


def run(module: str, *flags: str) -> Ended:
  """Runs the command in a new interpreter."""
  process = start('-m', f'experiments.{module}', *flags)
  out, err = process.communicate(timeout=300)
  return Ended(process.returncode, out, err)
