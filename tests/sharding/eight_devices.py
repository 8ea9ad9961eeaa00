"""Programs that run in a process of their own, which has eight CPU devices."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax

from tests import compiler

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
  '--xla_force_host_platform_device_count=8 '
  '--xla_llvm_disable_expensive_passes=true '
)


def run_lines(
  module: str, *args: str, devices: int = 8
) -> Iterator[dict[str, Any]]:
  """Yields the lines of JSON that a module prints.

  Args:
    module: to run, by `python -m`.
    args: of it.
    devices: of the process.

  Raises:
    RuntimeError: the module fails; with the end of what it says.
  """
  flags = FLAGS.replace('count=8', f'count={devices}')
  with subprocess.Popen(
    [sys.executable, '-m', module, *args],
    cwd=ROOT,
    env=os.environ
    | {'XLA_FLAGS': flags + compiler.quick_flags(), 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  ) as process:
    assert process.stdout is not None
    rest = []
    for line in process.stdout:
      if line.startswith('{'):
        yield json.loads(line)
      else:
        rest.append(line)
  if process.returncode:
    raise RuntimeError(f'{module}: {"".join(rest)[-2000:]}')


def local_bytes(tree: Any) -> int:
  """Returns the bytes that the first device has of a tree of arrays."""
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.device == jax.devices()[0]
  )
