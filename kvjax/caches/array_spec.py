"""What a cache is made of, before anything is allocated.

`init_cache` allocates from these records and `kvjax.memory` adds them up, so
that the bytes promised and the bytes allocated have one owner.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class ArraySpec:
  """One array of a cache: shape, dtype, initial value and named axes."""

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str, ...]
  fill: int = 0

  def allocate(self) -> jax.Array:
    # `jnp.full` moves its number to the device implicitly, which
    # `jax.transfer_guard('disallow')` forbids.
    number = jax.device_put(np.asarray(self.fill, self.dtype))
    return jnp.broadcast_to(number, self.shape)


def array_spec(
  shape: tuple[int, ...], dtype: Any, axes: tuple[str, ...], fill: int = 0
) -> Any:
  """Returns an `ArraySpec`, to stand where a record has an array.

  Args:
    shape: of the array.
    dtype: of its elements.
    axes: a name for each axis, such as 'batch' or 'slots'.
    fill: the value of every element at first.
  """
  return ArraySpec(shape, dtype, axes, fill)


def is_leaf(x: Any) -> bool:
  """Returns whether x is an `ArraySpec`, an array not allocated yet."""
  return isinstance(x, ArraySpec)
