"""Strictness for every test: warnings, ranks and dtypes are errors."""

import ctypes
import gc
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import pytest

from tests import compiler

# Compiled programs, some 5 MB each, would take a worker beyond 5 GB by the end
# of the suite. A worker drops its programs above the first bound. Where tests
# keep that much on purpose, it drops them after each growth by the second.
RESIDENT_BYTES = 1_600 * 2**20
GROWTH_BYTES = 400 * 2**20
LIMIT = pytest.StashKey[int]()

os.environ.setdefault(
  'XLA_FLAGS', compiler.quick_flags()
)  # read with the first device
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('filterwarnings', 'error')
  # Without a compiler the suite runs on plain JAX.
  slow = 'ignore:Attention on this CPU is several times slower'
  config.addinivalue_line('filterwarnings', slow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  # A notebook takes a minute. At the end one worker would wait for it.
  items.sort(key=lambda item: item.path.name != 'test_notebooks.py')


@pytest.fixture(autouse=True)
def drop_programs(request: pytest.FixtureRequest) -> Iterator[None]:
  """Drops compiled programs after a test once they take much memory."""
  yield
  stash = request.config.stash
  if _resident_bytes() > stash.get(LIMIT, RESIDENT_BYTES):
    jax.clear_caches()
    gc.collect()  # programs are parts of reference cycles
    _return_free_memory()
    stash[LIMIT] = max(RESIDENT_BYTES, _resident_bytes() + GROWTH_BYTES)


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


def _return_free_memory() -> None:
  """Returns freed memory to the system, where the C library is glibc.

  Without this call glibc keeps what it frees, nearly all of it.
  """
  library = ctypes.CDLL(None) if os.name == 'posix' else None
  if hasattr(library, 'malloc_trim'):
    library.malloc_trim(0)
