"""Strictness for every test: warnings, ranks and dtypes are errors."""

import ctypes
import gc
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import pytest

from tests import compiler

# Every compiled program keeps memory and memory maps. A worker drops its
# programs once it has more than this of either: two workers then fit into 5 GB,
# and Linux grants a process 65,530 maps.
RESIDENT_BYTES = 1_200 * 2**20
MAPS = 30_000

os.environ.setdefault(
  'XLA_FLAGS', compiler.quick_flags()
)  # read with the first device
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('filterwarnings', 'error')


@pytest.fixture(autouse=True, scope='module')
def forget_programs() -> Iterator[None]:
  """Drops compiled programs between files once they take much memory."""
  yield
  if _resident_bytes() > RESIDENT_BYTES or _maps() > MAPS:
    jax.clear_caches()
    gc.collect()  # programs are parts of reference cycles
    _return_free_memory()


@pytest.fixture(
  params=(jax.jit, lambda function: function), ids=('with_jit', 'without_jit')
)
def maybe_jit(request: pytest.FixtureRequest) -> Callable:
  """Runs a test twice: with what it wraps compiled, and as it is."""
  return request.param


@pytest.fixture
def as_users_do(monkeypatch: pytest.MonkeyPatch) -> None:
  """What is compiled explicitly is compiled by XLA's own defaults."""
  monkeypatch.setattr(jax.stages.Lowered, 'compile', compiler.as_users_do)


def _resident_bytes() -> int:
  """Returns the memory of this process; 0 where no file says it."""
  try:
    pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
  except OSError:
    return 0
  return int(pages) * os.sysconf('SC_PAGE_SIZE')


def _maps() -> int:
  """Returns the memory maps of this process; 0 where no file says it."""
  try:
    with open('/proc/self/maps', 'rb') as lines:
      return sum(1 for _ in lines)
  except OSError:
    return 0


def _return_free_memory() -> None:
  """Returns freed memory to the system, where the C library is glibc.

  LLVM frees many small pieces; glibc keeps the pages that they were on.
  """
  library = ctypes.CDLL(None) if os.name == 'posix' else None
  if hasattr(library, 'malloc_trim'):
    library.malloc_trim(0)
