"""Which tiles of `flash_decode` are fastest on the device at hand.

One axis after the other from what arithmetic says: of splits, block, stages,
merge. Few are tried, because each is compiled. The best are the table of the
kernel.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from experiments.measuring import attention, clock, peers
from experiments.measuring.attention import AttentionCase
from experiments.measuring.candidates import mosaic_gpu_inside
from experiments.measuring.candidates.mosaic_gpu_inside import CLUSTER, PORTABLE
from experiments.measuring.clock import Pace
from kvjax.kernels import Scoring
from kvjax.kernels.hopper import launch
from kvjax.kernels.hopper.tuning import Problem, Tiles

BLOCKS = (64, 128)
FACTORS = (0.5, 2.0)  # of the splits that are reckoned


def problem(case: AttentionCase) -> Problem:
  """Returns what the kernel cuts in a case."""
  return Problem(case.batch * case.heads, case.slots, case.width, case.width)


@dataclasses.dataclass(frozen=True)
class Cut:
  """Tiles, and where splits are merged.

  Attributes:
    tiles: of the launch.
    merge: 'after' the launch, by the kernel of the library, or 'inside' it, by
      the candidate.
  """

  tiles: Tiles
  merge: str = 'after'

  def replace(self, merge: str = 'after', **fields: int) -> 'Cut':
    """Returns the cut with other tiles."""
    return Cut(dataclasses.replace(self.tiles, **fields), merge)


def rows(
  case: AttentionCase, pace: Pace, axes: Sequence[str]
) -> Iterator[dict[str, Any]]:
  """Yields a record of each cut that was timed.

  The last is again the best of those that the kernel of the library can be: a
  device's table holds no other.

  Args:
    case: a full cache.
    pace: how it is timed; its repeats are those of each cut.
    axes: that are varied in turn, of `AXES`.
  """
  time = _timer(case, pace)
  best: tuple[float, Cut] | None = None
  done: set[Cut] = set()
  for candidates in (AXES[name] for name in axes):
    start = best[1] if best else Cut(problem(case).reckoned())
    for cut in candidates(problem(case), start):
      if cut in done:
        continue
      done.add(cut)
      record = _record(case, cut) | time(cut)
      yield record
      if 'seconds' not in record or cut.merge != 'after':
        continue
      if not best or record['seconds'] < best[0]:
        best = record['seconds'], cut
  if best:
    yield _record(case, best[1]) | {'seconds': best[0], 'best': True}


def _record(case: AttentionCase, cut: Cut) -> dict[str, Any]:
  about = {'record': 'sweep', 'kernel': 'mosaic_gpu', 'name': 'mosaic_gpu'}
  tiles = dataclasses.asdict(cut.tiles) | {'merge': cut.merge}
  return about | dataclasses.asdict(case) | tiles


def _splits(problem: Problem, cut: Cut) -> Iterator[Cut]:
  most = problem.slots // cut.tiles.block
  yield cut
  for factor in FACTORS:
    splits = min(max(round(cut.tiles.splits * factor), 1), most)
    yield cut.replace(splits=splits)


def _blocks(problem: Problem, cut: Cut) -> Iterator[Cut]:
  for block in BLOCKS:
    reckoned = problem.reckoned(block)
    if problem.slots % block == 0 and reckoned.stages >= 2:
      splits = min(cut.tiles.splits, problem.slots // block)
      yield Cut(reckoned).replace(splits=splits)


def _stages(problem: Problem, cut: Cut) -> Iterator[Cut]:
  del problem
  for stages in range(2, cut.tiles.stages):
    yield cut.replace(stages=stages)


def _merges(problem: Problem, cut: Cut) -> Iterator[Cut]:
  del problem
  yield cut
  yield cut.replace('inside', splits=min(cut.tiles.splits, PORTABLE))


def _clusters(problem: Problem, cut: Cut) -> Iterator[Cut]:
  """Clusters of more blocks than every Hopper GPU is bound to launch."""
  splits = min(CLUSTER, problem.slots // cut.tiles.block)
  if splits > PORTABLE:
    yield cut.replace('inside', splits=splits)


AXES = {
  'splits': _splits,
  'block': _blocks,
  'stages': _stages,
  'merge': _merges,
  'cluster': _clusters,
}


def _timer(case: AttentionCase, pace: Pace) -> Callable[[Cut], dict[str, Any]]:
  """Returns a function that times one cut over buffers that rotate."""
  copies = max(1, -(-pace.rotate // case.bytes))
  drawn = [attention.draw(case, seed) for seed in range(copies)]
  codec, stored = attention.stores(case, drawn)
  last, slot_positions = attention.positions(case)
  query = drawn[0][0]
  want = attention.reference(case, drawn[0])

  def attend(cut, q, streams):
    view = attention.encoded_view(codec, streams, slot_positions, case.filled)
    rule, tiles = Scoring(case.width**-0.5), dataclasses.asdict(cut.tiles)
    kernel = mosaic_gpu_inside if cut.merge == 'inside' else launch
    return kernel.attend({'key': q}, last, view, rule, **tiles)[0]

  def entry(cut):
    one = jax.jit(functools.partial(attend, cut))
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

  def time(cut):
    runners, skipped = clock.enter({'cut': lambda: entry(cut)})
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
