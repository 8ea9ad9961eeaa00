"""The platform that a program is written for, where its form depends on it.

XLA lowers any program for any platform; which one is fast there differs (size
of a block, dtype of a product), and so do the kernels that exist. It is the
platform of this process unless `targeting` says another: to lower, or compile
ahead of time, for a device that is not here.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

PLATFORMS = ('cpu', 'gpu', 'tpu')

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  'target', default=None
)


def target() -> str:
  """Returns 'cpu', 'gpu' or 'tpu'."""
  return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def targeting(platform: str) -> Iterator[None]:
  """Lets what is traced meanwhile be written for another platform.

  Trace inside, with a function of your own under `jax.jit`: programs that this
  process has traced before stay as they are.

  Raises:
    ValueError: there is no such platform.
  """
  if platform not in PLATFORMS:
    raise ValueError(
      f'platform={platform!r} must be one of {", ".join(PLATFORMS)}.'
    )
  token = _TARGET.set(platform)
  try:
    yield
  finally:
    _TARGET.reset(token)
