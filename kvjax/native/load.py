"""The compiled library: loaded once, called by XLA through `jax.ffi`."""

import ctypes
import functools
import warnings

import jax

from kvjax.context import PLAIN_JAX, target
from kvjax.mesh.region import mesh_of
from kvjax.native import build

DECODE, PROJECT, WRITE = 'kvjax_decode', 'kvjax_project', 'kvjax_write'
PROJECT_BLOCKS = 'kvjax_project_blocks'
CUSTOM_CALLS = (DECODE, PROJECT, PROJECT_BLOCKS, WRITE)
"""Names by which programs call the compiled CPU library, for `jax.export`."""


class KernelNotBuiltWarning(UserWarning):
  """The compiled library is absent, so a CPU attends by plain JAX."""


@functools.cache
def missing() -> str:
  """Loads the library, once; returns why there is none, '' if there is."""
  path = build.find()
  if path is None:
    return build.why_none()
  try:
    loaded = ctypes.cdll.LoadLibrary(str(path))
    for name in CUSTOM_CALLS:
      capsule = jax.ffi.pycapsule(getattr(loaded, name))
      jax.ffi.register_ffi_target(name, capsule, platform='cpu')
  except Exception as error:  # whatever it is, the fallback gives the answer
    return f'{path} does not load: {error}'
  return ''


def unwanted(*arrays: jax.Array) -> str:
  """Returns why a program must not call the library; '' if it may.

  Args:
    arrays: that the call would read.
  """
  if PLAIN_JAX.value:
    return 'plain JAX is requested'
  if target() != 'cpu':
    return f'it runs on cpu, not on {target()}'
  if mesh_of(*arrays) is not None:
    return 'on several devices a jit would gather what it cannot split'
  return missing()


@functools.cache
def warn_if_missing() -> None:
  """Warns, once a process, where this CPU goes without the library."""
  if reason := missing():
    warnings.warn(
      f'Attention on this CPU is several times slower than it could be: '
      f'{reason}',
      KernelNotBuiltWarning,
      stacklevel=2,
    )
