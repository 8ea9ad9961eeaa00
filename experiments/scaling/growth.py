"""Times along one axis, and the exponent by which they grow."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.measuring import clock, model
from experiments.measuring.attention import AttentionCase
from experiments.measuring.clock import Pace
from kvjax.kernels import available

CASE = AttentionCase(1, 8, 4, 128, 2048, 2048, 'float32')
MODEL = {
  'layers': 1,
  'width': 1024,
  'num_heads': 16,
  'num_kv_heads': 4,
  'key_width': 64,
  'hidden': 2816,
  'vocab_size': 8192,
  'dtype': 'float32',
}
CONTEXT = 512  # of a step
ROTATED = 537_000_000  # bytes of buffers that a race passes through

# Values of each axis: of a whole step for 'layers', else of attention alone.
AXES: dict[str, Sequence[int]] = {
  'context': (512, 1024, 2048, 4096, 8192, 16_384, 32_768),
  'batch': (1, 2, 4, 8, 16, 32),
  'heads': (1, 2, 4, 8, 16, 32),
  'layers': (1, 2, 4, 8, 16),
}


def check(axes: Sequence[str]) -> None:
  """Raises ValueError for what is no axis."""
  for name in axes:
    if name not in AXES:
      raise ValueError(f'axis {name!r} is unknown; known: {", ".join(AXES)}.')


def count(axes: Sequence[str]) -> int:
  """Returns how many records `rows` yields."""
  return sum(len(AXES[name]) for name in axes) + len(axes)


def rows(axes: Sequence[str], repeats: int) -> Iterator[dict[str, Any]]:
  """Yields a record a point, and after each axis its exponents.

  One exponent is of all points, one of the last doubling, where the cost of the
  call itself has the least weight.

  Args:
    axes: of `AXES`.
    repeats: of each time.
  """
  kernel = 'blockwise' if available()['ffi'] else 'ffi'
  pace = Pace(repeats, ROTATED, (kernel,), alone=True)
  for axis in axes:
    points = {}
    for size in AXES[axis]:
      result = _time(axis, size, pace)
      points[size] = result['seconds']
      yield {'record': 'growth', 'axis': axis, 'at': size, **result}
    last = dict(sorted(points.items())[-2:])
    yield {
      'record': 'exponent',
      'axis': axis,
      'kernel': kernel,
      'exponent': exponent(points),
      'last': exponent(last),
    }


def exponent(points: Mapping[int, float]) -> float:
  """Returns the least-squares slope of log seconds over log size."""
  sizes, seconds = np.log(list(points)), np.log(list(points.values()))
  return float(np.polyfit(sizes, seconds, 1)[0])


def _time(axis: str, size: int, pace: Pace) -> dict[str, Any]:
  """Returns the result of one point."""
  if axis == 'layers':
    config, params = model.build(MODEL | {'layers': size})
    case = model.StepCase(config, params, 1, CONTEXT)
  else:
    fields = ('slots', 'filled') if axis == 'context' else (axis,)
    case = dataclasses.replace(CASE, **dict.fromkeys(fields, size))
  (kernel,) = pace.kernels
  result = clock.measure(case, pace)[f'kvjax {kernel}']
  if 'skipped' in result:
    raise ValueError(f'{axis}={size}: {result["skipped"]}')
  return result
