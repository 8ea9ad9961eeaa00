"""What decides on a program without being an argument: `jax.jit` sees it."""

import jax
import pytest

from kvjax import context
from kvjax.kernels import interpreted, targeting
from kvjax.kernels.hopper import interpreter, tuning

TABLE = [(tuning.Problem(8, 64, 64, 64), tuning.Tiles(64, 2, 1))]


@pytest.mark.parametrize(
  ('entered', 'read'),
  [
    (lambda: targeting('tpu'), context.target),
    (interpreted, interpreter.settings),
    (lambda: tuning.using(TABLE), lambda: context.TILE_TABLE.value),
    (
      lambda: context.using_kernel('blockwise'),
      lambda: context.PLAIN_JAX.value,
    ),
  ],
  ids=['platform', 'interpreter', 'tile_table', 'plain_jax'],
)
def test_a_program_is_traced_again_under_another_value(entered, read):
  values = []

  @jax.jit
  def program(x):
    values.append(read())
    return x

  program(1)
  with entered():
    program(1)
    program(1)
  program(1)
  before, inside = values
  assert inside != before == read()
