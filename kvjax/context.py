"""All that is not an argument and yet decides what a program becomes.

Five values, and no other state: no environment variable and no variable of a
module does. Each is a context of JAX itself (`jax.make_user_context`), so that
`jax.jit` counts it as a part of a program's key: a function that was traced
under one value is traced again under another.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

PLATFORMS = ('cpu', 'gpu', 'tpu')

# The platform that programs are written for; None for that of this process.
PLATFORM = jax.make_user_context(None)
# Whether projections and writes are plain JAX, although a library is compiled.
PLAIN_JAX = jax.make_user_context(False)
# What `plgpu.kernel(interpret=)` takes; None to compile GPU kernels.
INTERPRETER = jax.make_user_context(None)
# How the arrays of a program are split over a mesh (`kvjax.mesh.Partition`).
# Never set from outside: it is read off a cache and its rules. None on one
# device, and in code that each device runs on its own part.
PARTITION = jax.make_user_context(None)
# Swept tiles of the Hopper kernel; None for the table of this device.
TILE_TABLE = jax.make_user_context(None)


def target() -> str:
  """Returns the platform that programs are written for: 'cpu', 'gpu' or 'tpu'.

  XLA lowers any program for any platform. Which form is fast differs (the size
  of a block, the dtype of a product), and so do the kernels that exist.
  """
  return PLATFORM.value or jax.default_backend()


@contextlib.contextmanager
def targeting(platform: str) -> Iterator[None]:
  """Writes what is traced inside for another platform than this process's.

  To lower a program, or to compile it ahead of time, for an absent device.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.

  Raises:
    ValueError: there is no such platform.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform={platform!r} must be one of {", ".join(PLATFORMS)}.'
    )
  with PLATFORM(platform):
    yield


@contextlib.contextmanager
def using_kernel(kernel: Any) -> Iterator[None]:
  """Lets projections and writes traced inside follow attention's kernel.

  Under 'blockwise' they are plain JAX, so that a whole step is. Under any other
  kernel, and None, they may call the compiled library.

  Args:
    kernel: a name, a `Kernel` or None.
  """
  with PLAIN_JAX(getattr(kernel, 'name', kernel) == 'blockwise'):
    yield
