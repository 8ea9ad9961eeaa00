"""Runs a module's `main` in several processes that share their devices.

    results = run_processes('tests.sharding.two', 2, 2, 'argument')

calls `main('argument')` of that module in two processes of two CPU devices each
(`jax.devices()` has four), and returns what each `main` returned, through JSON.
With a count of 1 it is one process of that many devices.
"""

import importlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

import jax

from tests import compiler

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 240  # until processes that wait for each other are ended


def run_processes(
  module: str, count: int, devices: int, *args: str, seconds: float = SECONDS
) -> list[Any]:
  """Returns the result of `main(*args)` in each process, in their order.

  Fails with the output of the processes as soon as one of them fails.

  Args:
    module: with a function `main`, whose result JSON can say.
    count: of processes.
    devices: of each process.
    args: of `main`, texts.
    seconds: until all of them must have ended.
  """
  flags = f'--xla_force_host_platform_device_count={devices}'
  environment = os.environ | {
    'XLA_FLAGS': f'{flags} {compiler.quick_flags()}',
    'JAX_PLATFORMS': 'cpu',
  }
  with tempfile.TemporaryDirectory() as name, socket.socket() as free:
    folder = pathlib.Path(name)
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
    free.close()
    commands = [
      [sys.executable, '-m', __name__, str(folder / f'{index}.json')]
      + [str(port), str(count), str(index), module, *args]
      for index in range(count)
    ]
    running = []
    try:
      for index, command in enumerate(commands):
        with (folder / f'{index}.log').open('w') as log:
          running.append(
            subprocess.Popen(
              command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )
          )
      _wait(running, folder, time.monotonic() + seconds)
    finally:
      for process in running:
        process.kill()
        process.wait()
    results = [folder / f'{index}.json' for index in range(count)]
    return [json.loads(result.read_text()) for result in results]


def _wait(running, folder: pathlib.Path, deadline: float) -> None:
  """Waits until all processes have ended well; AssertionError otherwise."""
  while any(process.poll() is None for process in running):
    if any(process.poll() for process in running):
      time.sleep(1)  # for the last words of the others
      break
    if time.monotonic() > deadline:
      break
    time.sleep(0.05)
  codes = [process.poll() for process in running]
  logs = [
    f'process {index} ended with {code} (None: it still ran):\n'
    + (folder / f'{index}.log').read_text()[-4_000:]
    for index, code in enumerate(codes)
  ]
  assert not any(code != 0 for code in codes), '\n'.join(logs)


def main(
  result: str, port: str, count: str, index: str, module: str, *args: str
) -> None:
  """Joins the other processes, calls the module's `main`, writes its result."""
  if int(count) > 1:
    jax.distributed.initialize(f'127.0.0.1:{port}', int(count), int(index))
  try:
    value = importlib.import_module(module).main(*args)
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # JAX would wait for processes that wait for this one
  pathlib.Path(result).write_text(json.dumps(value))


if __name__ == '__main__':
  main(*sys.argv[1:])
