"""Which tiles of `flash_decode` are fastest on the device at hand.

One axis is varied after the other, from what arithmetic gives: splits, block,
and where splits are merged. Few tiles are tried, because each is compiled. The
best are the table of the kernel.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.measuring import clock, forms
from experiments.measuring.attention import AttentionCase
from experiments.measuring.candidates.mosaic_gpu_inside import PORTABLE
from experiments.measuring.clock import Pace
from kvjax.kernels import available
from kvjax.kernels.hopper import tuning
from kvjax.kernels.hopper.tuning import Problem, Tiles

BLOCKS = (64, 128)
FACTORS = (1.0, 0.5, 2.0)  # of the best splits so far


def problem(case: AttentionCase) -> Problem:
  """Returns what the kernel cuts in a case."""
  return Problem(case.batch * case.heads, case.slots, case.width, case.width)


def rows(
  case: AttentionCase, pace: Pace, axes: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields a record of each launch that was timed.

  The last one repeats the best of those that merge after the launch, as the
  kernel of the library does: a device's table has no other tiles.

  Args:
    case: a full cache.
    pace: how it is timed; its repeats are those of each launch.
    axes: that are varied in turn, of `AXES`.
  """
  best = problem(case).reckoned()
  if missing := available()['mosaic_gpu']:
    yield _describe(case, best, 'after') | {'skipped': missing}
    return
  pace = dataclasses.replace(
    pace, kernels=('mosaic_gpu',), forms=tuple(forms.FORMS), alone=True
  )
  clock.give_back()
  repeats, entries = case.repeats(pace), case.entries(pace)
  tried: set[Tiles] = set()
  seconds: dict[Tiles, float] = {}
  for axis in axes:
    both = axis == 'merge'
    for tiles in AXES[axis](problem(case), best):
      if tiles in tried and not both:
        continue
      tried.add(tiles)
      for record in _time(case, repeats, entries, tiles, both):
        yield record
        if record['merge'] == 'after' and 'seconds' in record:
          seconds[tiles] = record['seconds']
    best = min(seconds, key=lambda tiles: seconds[tiles], default=best)
  if seconds:
    about = _describe(case, best, 'after')
    yield about | {'seconds': seconds[best], 'best': True}


def _splits(problem: Problem, best: Tiles) -> list[Tiles]:
  most = problem.slots // best.block
  counts = [max(round(best.splits * factor), 1) for factor in FACTORS]
  return [dataclasses.replace(best, splits=min(n, most)) for n in counts]


def _blocks(problem: Problem, best: Tiles) -> list[Tiles]:
  reckoned = [problem.reckoned(x) for x in BLOCKS if problem.slots % x == 0]
  return [
    dataclasses.replace(
      tiles, splits=min(best.splits, problem.slots // tiles.block)
    )
    for tiles in reckoned
    if tiles.stages >= 2
  ]


# The tiles that an axis tries, from the best so far.
AXES: dict[str, Callable[[Problem, Tiles], list[Tiles]]] = {
  'splits': _splits,
  'block': _blocks,
  'merge': lambda _, best: [best],
}


def _time(
  case: AttentionCase, repeats: int, entries: Any, tiles: Tiles, both: bool
) -> Iterator[dict[str, Any]]:
  """Yields a record of the kernel with some tiles, or of `both` its forms."""
  cuts = {'': ('after', tiles)}
  if both:
    inside = dataclasses.replace(tiles, splits=min(tiles.splits, PORTABLE))
    cuts['inside'] = 'inside', inside
  names = [forms.named('mosaic_gpu', form) for form in cuts]
  with tuning.using([(problem(case), tiles)]):
    runners, results = clock.enter({name: entries[name] for name in names})
    results |= clock.race(runners, repeats)
  for name, (merge, cut) in zip(names, cuts.values(), strict=True):
    yield _describe(case, cut, merge) | results[name]


def _describe(case: AttentionCase, tiles: Tiles, merge: str) -> dict[str, Any]:
  return {
    'record': 'sweep',
    'kernel': 'mosaic_gpu',
    'name': 'mosaic_gpu',
    **dataclasses.asdict(case),
    **dataclasses.asdict(tiles),
    'merge': merge,
  }
