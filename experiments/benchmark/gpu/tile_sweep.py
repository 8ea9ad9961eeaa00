"""Which tiles of `flash_decode` are fastest on the device at hand.

One axis after the other from what arithmetic says: of splits, block, stages,
merge. So few are tried because each is compiled. What is found is the table of
the kernel.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.measuring import attention, clock, peers
from experiments.measuring.attention import AttentionCase
from experiments.measuring.clock import Pace
from kvjax.kernels import Scoring
from kvjax.kernels.hopper import launch
from kvjax.kernels.hopper.tiling import CLUSTER, PORTABLE
from kvjax.kernels.hopper.tuning import Problem, Tiles
from kvjax.streams.view import contiguous_view

BLOCKS = (64, 128)
FACTORS = (0.5, 2.0)  # of the splits that are reckoned


def problem(case: AttentionCase) -> Problem:
  """Returns what the kernel cuts in a case."""
  return Problem(case.batch * case.heads, case.slots, case.width, case.width)


def rows(
  case: AttentionCase, pace: Pace, axes: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields a record of each cut that was timed; the last is the best, again.

  Args:
    case: a full cache.
    pace: how it is timed; its repeats are those of each cut.
    axes: that are varied in turn, of `AXES`.
  """
  time = _timer(case, pace)
  best: tuple[float, Tiles] | None = None
  done: set[Tiles] = set()
  for candidates in (AXES[name] for name in axes):
    given = best[1] if best else problem(case).reckoned()
    for tiles in candidates(problem(case), given):
      if tiles in done:
        continue
      done.add(tiles)
      record = _record(case, tiles) | time(tiles)
      yield record
      if 'seconds' in record and (not best or record['seconds'] < best[0]):
        best = record['seconds'], tiles
  if best:
    yield _record(case, best[1]) | {'seconds': best[0], 'best': True}


def _record(case: AttentionCase, tiles: Tiles) -> dict[str, Any]:
  about = {'record': 'sweep', 'kernel': 'mosaic_gpu', 'name': 'mosaic_gpu'}
  return about | dataclasses.asdict(case) | dataclasses.asdict(tiles)


def _splits(problem: Problem, tiles: Tiles) -> Iterator[Tiles]:
  most = problem.slots // tiles.block
  yield tiles
  for factor in FACTORS:
    splits = min(max(round(tiles.splits * factor), 1), most)
    yield dataclasses.replace(tiles, splits=splits)


def _blocks(problem: Problem, tiles: Tiles) -> Iterator[Tiles]:
  for block in BLOCKS:
    reckoned = problem.reckoned(block)
    if problem.slots % block == 0 and reckoned.stages >= 2:
      splits = min(tiles.splits, problem.slots // block)
      yield dataclasses.replace(reckoned, splits=splits)


def _stages(problem: Problem, tiles: Tiles) -> Iterator[Tiles]:
  del problem
  for stages in range(2, tiles.stages):
    yield dataclasses.replace(tiles, stages=stages)


def _merges(problem: Problem, tiles: Tiles) -> Iterator[Tiles]:
  del problem
  splits = min(tiles.splits, PORTABLE)
  yield dataclasses.replace(tiles, splits=splits, merge='inside')


def _clusters(problem: Problem, tiles: Tiles) -> Iterator[Tiles]:
  """Clusters of more blocks than every Hopper GPU is bound to launch."""
  splits = min(CLUSTER, problem.slots // tiles.block)
  if splits > PORTABLE:
    yield dataclasses.replace(tiles, splits=splits, merge='inside')


AXES = {
  'splits': _splits,
  'block': _blocks,
  'stages': _stages,
  'merge': _merges,
  'cluster': _clusters,
}


def _timer(
  case: AttentionCase, pace: Pace
) -> Callable[[Tiles], dict[str, Any]]:
  """Returns a function that times one cut over buffers that rotate."""
  copies = max(1, -(-pace.rotate // case.bytes))
  drawn = [attention.draw(case, seed) for seed in range(copies)]
  codec, stored = attention.stores(case, drawn)
  last, held = attention.positions(case)
  query = drawn[0][0]
  want = attention.reference(case, drawn[0])

  def attend(tiles, q, streams):
    view = contiguous_view(streams, held, case.filled, ordered=True)
    view = view.map(dict, lambda x: {n: codec.stored(x[n]) for n in x})
    rule, cut = Scoring(case.width**-0.5), dataclasses.asdict(tiles)
    return launch.attend({'key': q}, last, view, rule, **cut)[0]

  def entry(tiles):
    one = jax.jit(functools.partial(attend, tiles))
    program = jax.jit(
      functools.partial(_each, one), donate_argnames='old', keep_unused=True
    )
    start = attention.steady(program, query, stored)
    found = peers.host(start()[0][:1])[0]
    return clock.Runner(
      clock.queued(start, pace.calls, peers.finished),
      case.bytes,
      'mosaic_gpu',
      clock.difference(found, want),
      attention.TOLERANCE[case.dtype],
      pace.calls * copies,
    )

  def time(tiles):
    runners, skipped = clock.enter({'cut': lambda: entry(tiles)})
    return (clock.race(runners, pace.repeats) | skipped)['cut']

  return time


def _each(one, query, stored, old):
  """Returns attention to each, asking with the last one's answer."""
  del old
  outs = []
  for streams in stored:
    query = one(query, streams)
    outs.append(query)
  return outs
