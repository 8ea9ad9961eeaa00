"""Strictness for every test: warnings, ranks and dtypes are errors.

Programs are compiled without LLVM's optimisations, which halves the time of
the suite; XLA's own passes, and so buffers and fusions, are as ever. Set
XLA_FLAGS, if only to a space, to test what users run.
"""

import os
from collections.abc import Iterator

os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax  # noqa: E402
import pytest  # noqa: E402

# Linux grants a process 65,530 memory maps, and some of them stay with each
# compiled program: a worker that reaches the limit dies.
MAPS = 30_000

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('filterwarnings', 'error')


@pytest.fixture(autouse=True, scope='module')
def forget_programs() -> Iterator[None]:
  """Drops compiled programs between files once there are too many."""
  yield
  if _maps() > MAPS:
    jax.clear_caches()


def _maps() -> int:
  try:
    with open('/proc/self/maps', 'rb') as lines:
      return sum(1 for _ in lines)
  except OSError:
    return 0
