"""Strictness for every test: warnings, ranks and dtypes are errors."""

import os
from collections.abc import Callable, Iterator

import jax
import pytest

from tests import compiler

# Linux grants a process 65,530 memory maps, and every compiled program keeps
# some: a worker that reaches the limit dies.
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
  """Drops compiled programs between files once there are many."""
  yield
  if _maps() > MAPS:
    jax.clear_caches()


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


def _maps() -> int:
  try:
    with open('/proc/self/maps', 'rb') as lines:
      return sum(1 for _ in lines)
  except OSError:
    return 0
