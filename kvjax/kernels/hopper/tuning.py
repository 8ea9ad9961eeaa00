"""How launches of `flash_decode` are cut on a device: by what a sweep found.

`tuned/<device>.json` holds for each problem that was swept the fastest block,
stages and splits. A device that was never swept has no file, and a problem that
is like none of a file no entry: `tiling` then reckons.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from kvjax.kernels.hopper.tiling import (
  BLOCK,
  CLUSTER,
  MERGES,
  PORTABLE,
  TWICE,
  choose_splits,
  choose_stages,
)

FOLDER = pathlib.Path(__file__).parent / 'tuned'
NEAR = 1.0  # sizes within a factor of 2 ** NEAR are like each other


@dataclasses.dataclass(frozen=True)
class Tiles:
  """How a launch is cut.

  Attributes:
    block: slots a turn reads.
    stages: blocks in flight.
    splits: programs that share the slots of a row and kv head.
    merge: where they are merged: 'after' the kernel, by programs of XLA, or
      'inside' it, by clusters (`flash_decode_cluster`). The second has not run
      on a GPU: it is for those who ask, by this.
  """

  block: int
  stages: int
  splits: int
  merge: str = 'after'


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is cut.

  Attributes:
    programs: rows times kv heads.
    slots: S.
    width: H.
    value_width: E.
  """

  programs: int
  slots: int
  width: int
  value_width: int

  def distance(self, other: 'Problem') -> float:
    """Returns by how many doublings two differ; infinite for other widths."""
    if (self.width, self.value_width) != (other.width, other.value_width):
      return math.inf
    return max(
      abs(math.log2(self.programs / other.programs)),
      abs(math.log2(self.slots / other.slots)),
    )

  def reckoned(self, block: int | None = None) -> Tiles:
    """Returns tiles by arithmetic alone."""
    block = block or BLOCK
    stages = choose_stages(self.width, self.value_width, block)
    splits = choose_splits(self.programs, self.slots // block)
    return Tiles(block, stages, splits)


Table = Sequence[tuple[Problem, Tiles]]
# Of JAX, so that what was traced under another is traced anew.
_TABLE = jax.make_user_context(None)
_MERGE = jax.make_user_context(None)


def tiles(problem: Problem) -> Tiles:
  """Returns the tiles of the swept problem nearest to one, or reckons."""
  table: Table | None = _TABLE.value
  table = of_device() if table is None else table
  fitting = [
    (problem.distance(swept), index)
    for index, (swept, found) in enumerate(table)
    if problem.slots % found.block == 0
  ]
  distance, index = min(fitting, default=(math.inf, 0))
  return table[index][1] if distance <= NEAR else problem.reckoned()


def cut(
  problem: Problem,
  block: int | None = None,
  stages: int | None = None,
  splits: int | None = None,
  merge: str | None = None,
) -> Tiles:
  """Returns the tiles of a launch, with what was asked for in them.

  Args:
    problem: what is cut.
    block, stages, splits, merge: as in `Tiles`; None for the table's.

  Raises:
    ValueError: no form merges so, or not so many splits.
  """
  chosen = problem.reckoned(block) if block else tiles(problem)
  merge = merge or _MERGE.value or chosen.merge
  if merge not in MERGES:
    raise ValueError(f'merge={merge!r} must be one of {", ".join(MERGES)}.')
  found = Tiles(
    chosen.block, stages or chosen.stages, splits or chosen.splits, merge
  )
  if merge == 'after':
    return found
  swept = chosen.splits if chosen.merge == merge else None
  return _inside(problem, found, splits or swept)


def _inside(problem: Problem, tiles: Tiles, splits: int | None) -> Tiles:
  """Returns tiles that one cluster and its shared memory can be."""
  if splits and splits > CLUSTER:
    raise ValueError(
      f'splits={splits} cannot merge inside one launch: a cluster has at '
      f"most {CLUSTER} blocks. Give fewer, or merge='after'."
    )
  most = choose_stages(problem.width, problem.value_width, tiles.block, TWICE)
  if most < 2:
    raise ValueError(
      f'widths {problem.width} and {problem.value_width} leave no room for '
      "two blocks beside queries as they lie. Give merge='after'."
    )
  return dataclasses.replace(
    tiles,
    stages=min(tiles.stages, most),
    splits=splits or min(tiles.splits, PORTABLE),
  )


@contextlib.contextmanager
def using(table: Table) -> Iterator[None]:
  """Lets kernels that are traced meanwhile be cut by a table of one's own."""
  with _TABLE(tuple(table)):
    yield


@contextlib.contextmanager
def merging(merge: str | None) -> Iterator[None]:
  """Lets kernels that are traced meanwhile merge so, whatever tables say.

  Args:
    merge: as in `Tiles`; None for what tables say.
  """
  with _MERGE(merge):
    yield


def file_name(device_kind: str) -> str:
  """Returns the name of a device's table."""
  letters = (c if c.isalnum() else '_' for c in device_kind.lower())
  return f'{"".join(letters)}.json'


def of_device() -> Table:
  """Returns the table of this process's device; empty if it has none."""
  return _read(FOLDER / file_name(jax.devices()[0].device_kind))


@functools.cache
def _read(path: pathlib.Path) -> Table:
  return load(json.loads(path.read_text('utf-8'))) if path.exists() else ()


def load(file: dict[str, Any]) -> Table:
  """Returns the table that `dump` wrote, less what it says for people."""
  return tuple(
    (Problem(**entry['problem']), Tiles(**entry['tiles']))
    for entry in file['entries']
  )


def dump(table: Table, **about: Any) -> dict[str, Any]:
  """Returns what a table's file holds; `about` says how it came to be."""
  entries = [
    {'problem': dataclasses.asdict(p), 'tiles': dataclasses.asdict(t)}
    for p, t in table
  ]
  return {**about, 'entries': entries}
