"""How launches of `flash_decode` are cut on a device: by what a sweep found.

`tuned/<device>.json` holds for each problem that was swept the fastest block,
stages and splits. A device that was never swept has no file, and a problem that
is like none of a file no entry: `tiling` then reckons.
"""

import contextlib
import contextvars
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from kvjax.kernels.tiling import BLOCK, choose_splits, choose_stages

FOLDER = pathlib.Path(__file__).parent / 'tuned'
NEAR = 1.0  # sizes within a factor of 2 ** NEAR are like each other


@dataclasses.dataclass(frozen=True)
class Tiles:
  """How a launch is cut.

  Attributes:
    block: slots a turn reads.
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


Table = Sequence[tuple[Problem, Tiles]]
_TABLE: contextvars.ContextVar[Table | None] = contextvars.ContextVar(
    'table', default=None
)


def tiles(problem: Problem) -> Tiles:
  """Returns the tiles of the swept problem nearest to one, or reckons."""
  table = _TABLE.get()
  table = of_device() if table is None else table
  fitting = [
      (problem.distance(swept), index)
      for index, (swept, found) in enumerate(table)
      if problem.slots % found.block == 0
  ]
  distance, index = min(fitting, default=(math.inf, 0))
  return table[index][1] if distance <= NEAR else problem.reckoned()


@contextlib.contextmanager
def using(table: Table) -> Iterator[None]:
  """Lets kernels that are traced meanwhile be cut by a table of one's own."""
  token = _TABLE.set(table)
  try:
    yield
  finally:
    _TABLE.reset(token)


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
