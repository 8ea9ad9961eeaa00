"""Lengths at which a program is analysed: few, and no more than need be."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.evidence import perturb

Array = np.ndarray
Program = Callable[..., Any]
LONGEST = 72  # Positions; a window beyond half of it is refused, not guessed.


def of(program: Program, x: Any, axis: int, step: int) -> Iterator[int]:
  """Short lengths first; those of a program of fixed length are its own."""
  size = np.shape(x)[axis]
  if not step:
    yield size
    return
  start = min(max(size, 12), 40)
  sample = resized(x, whole(start, step), axis)
  reach = max(_compared(jax.make_jaxpr(program)(sample).jaxpr), default=0)
  if reach >= LONGEST // 2:
    raise AnalysisError(
      f'positions are compared with {reach}: a window longer than the '
      f'{LONGEST // 2} positions analysed. Analyse a shorter window.'
    )
  start = max(start, 2 * reach)
  every = [start, start + 3, 2 * start, 2 * start + 3]
  every += [n for n in (LONGEST - 3, LONGEST) if n > start]
  yield from sorted({whole(length, step) for length in every})


def step(program: Program, x: Any, axis: int) -> int:
  """Between lengths that the program takes: 1, that of `x`, or 0 for none."""
  size = np.shape(x)[axis]
  for found, length in ((1, size + 3), (size, 2 * size)):
    if takes(program, x, axis, length):
      return found
  return 0


def whole(length: int, step: int) -> int:
  """The first multiple of `step` from a length on."""
  return -(-length // step) * step


def takes(program: Program, x: Any, axis: int, length: int) -> bool:
  """Whether the program can be traced at a length."""
  try:
    jax.eval_shape(program, resized(x, length, axis))
  except (TypeError, ValueError, AssertionError, IndexError):
    return False
  return True


def _compared(jaxpr: Any) -> Iterator[int]:
  """Whole numbers that something is compared with."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name in ('lt', 'le', 'gt', 'ge'):
      for v in eqn.invars:
        if isinstance(v, core.Literal) and np.asarray(v.val).dtype == np.int32:
          yield abs(int(v.val))
    for inner in core.jaxprs_in_params(eqn.params):
      yield from _compared(inner)


def resized(x: Any, length: int, axis: int) -> Array:
  """`x` at another length; longer ones repeat its rows, with noise."""
  x = np.asarray(x)
  size = x.shape[axis]
  held = min(size, length)
  out = np.take(x, np.arange(length) % size, axis)
  more = np.take(perturb.noise(0, out), range(held, length), axis)
  return np.concatenate([np.take(out, range(held), axis), more], axis)
