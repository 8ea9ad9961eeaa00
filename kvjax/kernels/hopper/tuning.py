"""How launches of `flash_decode` are cut on a device, as a sweep measured it.

`tuned/<device>.json` holds for each problem that was swept the fastest block,
stages and splits. A device that was never swept has no file, and a problem may
be unlike every problem of a file: `tiling` then chooses by arithmetic.
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

from kvjax.context import TILE_TABLE
from kvjax.kernels.hopper.tiling import BLOCK, choose_splits, choose_stages

FOLDER = pathlib.Path(__file__).parent / 'tuned'
NEAR = 1.0  # sizes within a factor of 2 ** NEAR are like each other


@dataclasses.dataclass(frozen=True)
class Tiles:
  """How a launch is cut.

  Attributes:
    block: slots that one iteration reads.
    stages: blocks in flight.
    splits: programs that share the slots of a row and kv head.
  """

  block: int
  stages: int
  splits: int


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


SweptTiles = Sequence[tuple[Problem, Tiles]]


def swept_tiles(problem: Problem) -> Tiles:
  """Returns the tiles of the nearest swept problem, or reckons."""
  requested: SweptTiles | None = TILE_TABLE.value
  table = of_device() if requested is None else requested
  fitting = [
    (problem.distance(swept), index)
    for index, (swept, tiles) in enumerate(table)
    if problem.slots % tiles.block == 0
  ]
  distance, index = min(fitting, default=(math.inf, 0))
  return table[index][1] if distance <= NEAR else problem.reckoned()


def choose_tiles(
  problem: Problem,
  block: int | None = None,
  stages: int | None = None,
  splits: int | None = None,
) -> Tiles:
  """Returns the tiles of a launch.

  Args:
    problem: what is cut.
    block, stages, splits: requested, as in `Tiles`; None for the table's. A
      table says nothing of another block, so that arithmetic does.
  """
  tiles = problem.reckoned(block) if block else swept_tiles(problem)
  return Tiles(tiles.block, stages or tiles.stages, splits or tiles.splits)


@contextlib.contextmanager
def using(table: SweptTiles) -> Iterator[None]:
  """Cuts kernels that are traced inside by a table of the caller's."""
  with TILE_TABLE(tuple(table)):
    yield


def file_name(device_kind: str) -> str:
  """Returns the name of a device's table."""
  letters = (c if c.isalnum() else '_' for c in device_kind.lower())
  return f'{"".join(letters)}.json'


def of_device() -> SweptTiles:
  """Returns the table of this process's device; empty if it has none."""
  return _read(FOLDER / file_name(jax.devices()[0].device_kind))


@functools.cache
def _read(path: pathlib.Path) -> SweptTiles:
  return load(json.loads(path.read_text('utf-8'))) if path.exists() else ()


def load(file: dict[str, Any]) -> SweptTiles:
  """Returns the table that `dump` wrote, without what is there for people.

  Files written before 2026-12 may say where splits were merged. `flash_decode`
  merges after its launch: tiles of another program are no use to it.
  """
  table = []
  for entry in file['entries']:
    tiles = dict(entry['tiles'])
    if tiles.pop('merge', 'after') == 'after':
      table.append((Problem(**entry['problem']), Tiles(**tiles)))
  return tuple(table)


def dump(table: SweptTiles, **about: Any) -> dict[str, Any]:
  """Returns what a table's file holds; `about` says how it was measured."""
  entries = [
    {
      'problem': dataclasses.asdict(problem),
      'tiles': dataclasses.asdict(tiles),
    }
    for problem, tiles in table
  ]
  return {**about, 'entries': entries}
