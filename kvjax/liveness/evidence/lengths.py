"""The lengths at which a program is analysed: as few as are needed."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import perturb
from kvjax.liveness.program import jaxprs

Array = np.ndarray
Program = Callable[..., Any]
LONGEST = 72  # Positions; a window beyond half of it is refused, not guessed.


def choose_lengths(
  program: Program, x: Any, axis: int, step: int
) -> Iterator[int]:
  """Yields lengths, short ones first; only that of `x` if `step` is 0.

  Raises:
    AnalysisError: a comparison states a window too long to analyse.
  """
  size = np.shape(x)[axis]
  if not step:
    yield size
    return
  start = min(max(size, 12), 40)
  sample = resize(x, round_up(start, step), axis)
  reach = max(_compared(jax.make_jaxpr(program)(sample).jaxpr), default=0)
  if reach >= LONGEST // 2:
    raise AnalysisError(
      f'positions are compared with {reach}: a window longer than the '
      f'{LONGEST // 2} positions analysed. Analyse a shorter window.'
    )
  start = max(start, 2 * reach)
  # Two lengths 3 apart differ modulo most block sizes. Later pairs are for
  # windows that the first pair does not reach the end of.
  lengths = [start, start + 3, 2 * start, 2 * start + 3]
  lengths += [n for n in (LONGEST - 3, LONGEST) if n > start]
  yield from sorted({round_up(length, step) for length in lengths})


def find_step(program: Program, x: Any, axis: int) -> int:
  """Returns what lengths are multiples of: 1, that of `x`, or 0: no other."""
  size = np.shape(x)[axis]
  for step, length in ((1, size + 3), (size, 2 * size)):
    if accepts(program, x, axis, length):
      return step
  return 0


def round_up(length: int, step: int) -> int:
  """Returns the first multiple of `step` that is `length` or more."""
  return -(-length // step) * step


def accepts(program: Program, x: Any, axis: int, length: int) -> bool:
  """Returns whether the program can be traced at a length."""
  try:
    jax.eval_shape(program, resize(x, length, axis))
  except (TypeError, ValueError, AssertionError, IndexError):
    return False
  return True


def _compared(jaxpr: Any) -> Iterator[int]:
  """Yields the integers that a jaxpr compares something with."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('lt', 'le', 'gt', 'ge'):
      for v in eqn.invars:
        if isinstance(v, core.Literal) and np.asarray(v.val).dtype == np.int32:
          yield abs(int(v.val))
    for inner in jaxprs.nested(eqn):
      yield from _compared(inner)


def resize(x: Any, length: int, axis: int) -> Array:
  """Returns `x` at another length; longer ones repeat its rows, with noise."""
  x = np.asarray(x)
  size = x.shape[axis]
  same = min(size, length)
  out = np.take(x, np.arange(length) % size, axis)
  noise = np.take(perturb.make_noise(0, out), range(same, length), axis)
  return np.concatenate([np.take(out, range(same), axis), noise], axis)
