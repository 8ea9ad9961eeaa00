"""Times along one axis, and the exponent by which they grow."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.measuring import attention, model
from experiments.measuring.attention import Case, Pace
from kvjax.kernels import available

CASE = Case(1, 8, 4, 128, 2048, 2048, 'float32')
MODEL = {
    'layers': 1, 'width': 1024, 'num_heads': 16, 'num_kv_heads': 4,
    'key_width': 64, 'hidden': 2816, 'vocab_size': 8192, 'dtype': 'float32',
}  # fmt: skip
CONTEXT = 512  # of a step
ROTATED = 537_000_000  # bytes of buffers that a race passes through

# Values of each axis: of attention alone, but for layers.
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


def rows(
  axes: Sequence[str],
  repeats: int,
  values: Mapping[str, Sequence[int]] = AXES,
  rotate: int = ROTATED,
) -> Iterator[dict[str, Any]]:
  """Yields a record a point, and after each axis its exponents.

  That of all points, and that of the last doubling, where what a call costs
  by itself weighs least.

  Args:
    axes: of `AXES`.
    repeats: of each time.
    values: of each axis.
    rotate: bytes of buffers of attention alone.
  """
  kernel = 'blockwise' if available()['ffi'] else 'ffi'
  for axis in axes:
    points = {}
    for at in values[axis]:
      found = _timed(axis, at, kernel, repeats, rotate)
      points[at] = found['seconds']
      yield {'record': 'growth', 'axis': axis, 'at': at, **found}
    last = dict(sorted(points.items())[-2:])
    yield {
        'record': 'exponent', 'axis': axis, 'kernel': kernel,
        'exponent': exponent(points), 'last': exponent(last),
    }  # fmt: skip


def exponent(points: Mapping[int, float]) -> float:
  """Returns the least-squares slope of log seconds over log size."""
  sizes, seconds = np.log(list(points)), np.log(list(points.values()))
  return float(np.polyfit(sizes, seconds, 1)[0])


def _timed(axis, at, kernel, repeats, rotate) -> dict[str, Any]:
  if axis == 'layers':
    config, params = model.build(MODEL | {'layers': at})
    given = config, params, 1, CONTEXT
    found = model.step(*given, repeats, (kernel,), alone=True)
  else:
    fields = {'slots': at, 'filled': at} if axis == 'context' else {axis: at}
    case = dataclasses.replace(CASE, **fields)
    pace = Pace(repeats, rotate, (kernel,))
    found = attention.measure(case, pace, alone=True)
  result = found[f'kvjax {kernel}']
  if 'skipped' in result:
    raise ValueError(f'{axis}={at}: {result["skipped"]}')
  return result
