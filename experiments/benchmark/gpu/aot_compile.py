"""Programs compiled ahead of time for a GPU that is not here.

XLA compiles for a CUDA device of which it has a description in text, a
`stream_executor.GpuTargetConfigProto`. What comes back is the scheduled
program, its memory, and of Mosaic kernels what ptxas says: structure, never
speed, and without a device nothing is tuned.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

PLUGINS = 'jax_cuda13_plugin', 'jax_cuda12_plugin'
# Shape and opcode of an instruction; the shape of a tuple has blanks.
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?\S+ = (.*?) ([a-z][a-z-]*)\(')
_ARRAY = re.compile(r'\w+\[([\d,]*)\]')
# Opcodes that only name memory.
_NAMES = 'parameter', 'constant', 'bitcast', 'tuple', 'get-tuple-element'
_SCOPE = re.compile(r'op_name="([^"]*)"')
_REGISTERS = re.compile(r'Used (\d+) registers')
_SPILLS = re.compile(r'(\d+) bytes spill stores, (\d+) bytes spill loads')


def devices(path: str | pathlib.Path, count: int = 1) -> list[Any]:
  """Returns described GPUs, to be given to arguments by their shardings.

  Args:
    path: of the description.
    count: GPUs, of one node.

  Raises:
    ValueError: the compiler for CUDA is not installed, or does not read it.
    OSError: there is no such file.
  """
  text = pathlib.Path(path).read_text('utf-8')
  if not any(importlib.util.find_spec(name) for name in PLUGINS):
    raise ValueError(
      'no compiler for CUDA: pip install --no-deps '
      f'jax-cuda13-pjrt=={jax.__version__} '
      f'jax-cuda13-plugin=={jax.__version__} nvidia-cuda-nvcc nvidia-nvvm '
      'nvidia-cuda-runtime nvidia-nvjitlink nvidia-cuda-nvrtc '
      'nvidia-cuda-cupti'
    )
  try:
    found = topologies.get_topology_desc(
      platform='cuda', target_config=text, topology=f'1x1x{count}'
    )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise ValueError(
      f'{path} is no description that JAX {jax.__version__} reads: {reason} '
      'Give one dumped by this version, or delete the fields that XLA names '
      'above.'
    ) from None
  return list(found.devices)


def dump(path: str | pathlib.Path) -> None:
  """Writes the description of this process's GPU, as `device` reads it.

  Raises:
    ValueError: it has no GPU, or its plugin does not describe it.
  """
  if jax.default_backend() != 'gpu':
    raise ValueError(f'no GPU: this process runs on {jax.default_backend()}.')
  # The client is private to JAX, and its own tests ask it so.
  client: Any = importlib.import_module('jax._src.lib').xla_client
  found = client.get_topology_for_devices(jax.devices()[:1])
  text = getattr(found, 'target_config', None)
  if not text:
    raise ValueError(f'JAX {jax.__version__} does not describe its GPU.')
  pathlib.Path(path).write_text(str(text), 'utf-8')


@contextlib.contextmanager
def assembler() -> Iterator[Callable[[], dict[str, int]]]:
  """Yields a function that sums up ptxas's reports since it was called last.

  `{'kernels', 'registers', 'spills'}`: how many, the most registers, and bytes
  spilled by all.
  """
  with tempfile.TemporaryDirectory() as folder:
    names = {'MOSAIC_GPU_DUMP_PTXAS': '1', 'MOSAIC_GPU_DUMP_TO': folder}

    def reports():
      text = ''
      for path in sorted(pathlib.Path(folder).glob('*.ptxas')):
        text += path.read_text()
        path.unlink()
      registers = list(map(int, _REGISTERS.findall(text)))
      return {
        'kernels': len(registers),
        'registers': max(registers, default=0),
        'spills': sum(int(n) for pair in _SPILLS.findall(text) for n in pair),
      }

    with mock.patch.dict(os.environ, names):  # which restores both afterwards
      yield reports


def moved(compiled: jax.stages.Compiled, elements: int) -> list[str]:
  """Returns what writes so many elements anew, but for writes of the cache.

  A fusion that updates a cache's leaf has the leaf's size as well and writes
  a few rows of it, in place: kvjax names its scope `cache`, and memory
  without room for a copy proves it.

  Args:
    compiled: of a decode step.
    elements: of the smallest leaf of streams.

  Returns:
    `opcode scope` of each instruction of the scheduled program.
  """
  found = []
  for shape, opcode, line in _started(compiled):
    array, scope = _ARRAY.match(shape), _SCOPE.search(line)
    if not array:
      continue
    size = math.prod(int(n) for n in array[1].split(',') if n)
    where = scope[1] if scope else ''
    if size >= elements and '/cache/' not in where:
      found.append(f'{opcode} {where}')
  return found


def launches(compiled: jax.stages.Compiled) -> int:
  """Returns how many kernels, copies and calls a program starts, one by one.

  What only names memory starts nothing; loops, which a decode step on a GPU
  has none of, would count once.
  """
  return len(list(_started(compiled)))


def _started(compiled: jax.stages.Compiled) -> Iterator[tuple[str, str, str]]:
  """Yields shape, opcode and text of what a program starts, in order."""
  text: str = compiled.as_text() or ''
  for line in text[text.index('ENTRY') :].splitlines():
    match = _INSTRUCTION.match(line)
    if match and match[2] not in _NAMES:
      yield match[1], match[2], line


def kernel_calls(compiled: jax.stages.Compiled) -> int:
  """Returns how many Mosaic kernels a program calls."""
  return (compiled.as_text() or '').count('custom_call_target="mosaic_gpu')


def name_of(path: str | pathlib.Path) -> dict[str, str]:
  """Returns the device that a description names, and the file's digest."""
  text = pathlib.Path(path).read_text('utf-8')
  named = re.search(r'device_description_str: "([^"]*)"', text)
  digest = hashlib.sha256(text.encode()).hexdigest()
  return {'target': named[1] if named else '', 'target_sha256': digest}
