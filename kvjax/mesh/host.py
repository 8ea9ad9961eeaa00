"""Arrays of many devices, and of many processes, on the host."""

from typing import Any

import jax
import numpy as np


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
