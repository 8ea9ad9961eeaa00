"""Which kernels a program calls, read off what it is lowered to."""

from collections.abc import Callable
from typing import Any

import jax

from kvjax.native import load

# What stands for a kernel in a lowered program; the block loop is plain JAX.
MARKS = {'ffi': load.DECODE, 'mosaic_gpu': 'mosaic_gpu', 'cudnn': 'cudnn'}


def ran(program: Callable[..., Any], *args: Any) -> str:
  """Returns names of the kernels that attend in a program on this device.

  Args:
    program: traceable; kernels that are interpreted leave no mark in it.
    args: pytrees of arrays.
  """
  text = jax.jit(program).lower(*args).as_text()
  found = [name for name, mark in MARKS.items() if mark in text]
  return ' '.join(found) or 'blockwise'
