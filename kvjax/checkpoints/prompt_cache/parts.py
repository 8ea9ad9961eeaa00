"""A prompt cache as a directory: a file for each process that shares it.

Every process writes the blocks that it holds. The directory gets its name when
all files are written, so a reader never sees some of them.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kvjax.checkpoints.files import publish

PART = 'part'  # the key in the metadata
NAME = re.compile(r'part-\d{5}-of-(\d{5})\.safetensors')


def blocks_of(leaves: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
  """Returns blocks of arrays, `name@0,8,0`; of all processes, each once."""
  return {
    f'{name}@{",".join(str(axis.start or 0) for axis in shard.index)}': (
      np.asarray(shard.data, order='C')
    )
    for name, leaf in leaves.items()
    for shard in leaf.addressable_shards
    if shard.replica_id == 0
  }


def check_target(path: pathlib.Path) -> None:
  """Raises ValueError for what must not be replaced by a directory."""
  is_cache = path.is_dir() and all(
    NAME.fullmatch(file.name) for file in path.iterdir()
  )
  if os.path.lexists(path) and not is_cache:
    raise ValueError(
      f'{path} is there and no cache that several processes saved: give '
      'another path, or remove it.'
    )


def write_parts(
  target: pathlib.Path, write: Callable[[pathlib.Path, dict[str, Any]], None]
) -> None:
  """Writes a directory of parts; all processes call this function.

  Args:
    target: of the directory, which all processes see.
    write: writes this process's file, given its path and what tells saves and
      parts of a save apart.

  Raises:
    OSError: this process or another cannot write.
  """
  # Few programs span processes, and this module takes time to load.
  from jax.experimental import multihost_utils

  random = np.frombuffer(os.urandom(8), np.uint8)
  save = bytes(multihost_utils.broadcast_one_to_all(random)).hex()
  index, count = jax.process_index(), jax.process_count()
  scratch = target.parent / f'.kvjax-{save}.part'

  def write_own():
    scratch.mkdir(exist_ok=True)
    write(scratch / _name(index, count), {'save': save, 'index': index})

  def name_all():
    if index == 0:
      publish(scratch, target)

  try:
    _together(write_own)
    _together(name_all)
  finally:
    if index == 0:
      shutil.rmtree(scratch, ignore_errors=True)


def find_parts(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a directory, one for each process that saved it.

  Raises:
    ValueError: a file is missing or left over, or there is none.
  """
  names = sorted(file.name for file in path.glob('part-*'))
  match = NAME.fullmatch(names[0]) if names else None
  if match is None:
    raise ValueError(f'{path} is a directory, and no cache that was saved.')
  wanted = [_name(index, int(match[1])) for index in range(int(match[1]))]
  if wrong := sorted(set(names) ^ set(wanted)):
    state = 'left over' if wrong[0] in names else 'missing'
    raise ValueError(
      f'{path} is no whole cache: {wrong[0]} is {state}. Copy all files of one '
      'save.'
    )
  return [path / name for name in wanted]


def check_parts(path: pathlib.Path, parts: Sequence[dict[str, Any]]) -> None:
  """Raises ValueError unless the metadata are of all parts of one save."""
  first, part = parts[0], parts[0].get(PART)
  if isinstance(part, dict) != path.is_dir():
    raise ValueError(
      f'{path} is no whole cache: give the directory of all its parts, as '
      'save_cache wrote it.'
    )
  for index, other in enumerate(parts):
    if part and other != first | {PART: part | {'index': index}}:
      raise ValueError(
        f'{path} is no whole cache: part {index + 1} is of another save. Copy '
        'all files of one save.'
      )


def _name(index: int, count: int) -> str:
  return f'part-{index + 1:05}-of-{count:05}.safetensors'


def _together(action: Callable[[], None]) -> None:
  """Runs an action in all processes, and waits for all.

  Where one fails all do: none waits for another that is gone.
  """
  from jax.experimental import multihost_utils

  error = None
  try:
    action()
  except Exception as caught:
    error = caught
  failed = multihost_utils.process_allgather(np.asarray(error is not None))
  if failed.any():
    raise OSError(
      f'Nothing was saved. Process {np.argmax(failed)} could not write: '
      f'{error or "its own error says why"}.'
    ) from error
