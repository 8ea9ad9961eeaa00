"""Arrays of many devices, and of many processes, from the host and back."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def shardings_of(mesh: Any, specs: Any) -> Any:
  """Returns a `NamedSharding` for every `PartitionSpec` of a tree.

  Raises:
    ValueError: the mesh has no devices, such as sizes by axis.
  """
  if not isinstance(mesh, jax.sharding.Mesh):
    raise ValueError(
      f'mesh={mesh!r} has no devices for arrays: give a jax.sharding.Mesh, as '
      'jax.make_mesh makes it.'
    )
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def from_host(
  shape: tuple[int, ...],
  sharding: jax.sharding.Sharding,
  read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
  """Returns an array whose parts each process reads for its own devices.

  A part that several devices of the process hold is read once.

  Args:
    shape: of the whole array.
    sharding: over the devices of one process or many.
    read: from start and stop on each axis to that part.
  """

  @functools.cache
  def read_once(*bounds):
    return read(tuple(slice(*pair) for pair in bounds))

  def part(index):
    slices = zip(index, shape, strict=True)
    return read_once(*(axis.indices(size)[:2] for axis, size in slices))

  return jax.make_array_from_callback(shape, sharding, part)


def host(x: Any) -> np.ndarray:
  """Returns an array in the memory of this process, whole.

  What every device holds whole is read without communication. Of an array whose
  parts other processes hold, all processes must ask at the same time.

  Args:
    x: an array.
  """
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return jax.device_get(x)
  if x.is_fully_replicated:
    return jax.device_get(x.addressable_data(0))
  # Few programs span processes, and this module takes time to load.
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def can_read(x: Any) -> bool:
  """Returns whether this process alone can read an array."""
  if not isinstance(x, jax.Array):
    return True
  return x.is_fully_addressable or x.is_fully_replicated
