"""Claims on a point: of several sweeps and requeued jobs, one runs it.

A claim is a file `.claim-N` in the folder of the point, with the name of its
owner. The highest N counts. The file system lets one process alone create
N + 1, and no claim is deleted, so a slow process cannot create an old one
again. The owner touches its claim every second. A claim that was not touched
for `ALIVE` seconds was released, or its owner is dead: it holds no longer.
"""

import contextlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator

ALIVE = 120.0  # seconds; clocks of two machines differ by less


class ClaimedError(Exception):
  """Another process has the point; says which."""


@contextlib.contextmanager
def claimed(place: pathlib.Path, owner: str) -> Iterator[Callable[[], None]]:
  """Holds the claim on a point; yields a function that keeps it alive.

  Args:
    place: folder of the point.
    owner: who claims it. A claim of the same owner is no obstacle: a requeued
      job has the name that it had before its end.

  Raises:
    ClaimedError: another owner has the point; the function raises it if one
      has taken the point while this process was stopped.
  """
  number = check(place, owner) + 1
  path = _claim(place, number)
  try:
    with path.open('x') as file:
      file.write(owner)
  except FileExistsError:
    raise ClaimedError('another process has just taken it') from None

  def keep() -> None:
    os.utime(path)
    if _newest(place) > number:
      raise ClaimedError('another process took it while this one was stopped')

  try:
    yield keep
  finally:
    os.utime(path, (0, 0))


def check(place: pathlib.Path, owner: str) -> int:
  """Returns the number of the newest claim; 0 for none.

  Raises:
    ClaimedError: it is of another owner, and holds.
  """
  number = _newest(place)
  if not number:
    return 0
  path = _claim(place, number)
  holder = path.read_text()
  silent = time.time() - path.stat().st_mtime
  if holder != owner and silent < ALIVE:
    raise ClaimedError(
      f'{holder or "another process"} runs it, as of {silent:.0f} s ago'
    )
  return number


def _claim(place: pathlib.Path, number: int) -> pathlib.Path:
  return place / f'.claim-{number}'


def _newest(place: pathlib.Path) -> int:
  claims = place.glob('.claim-*')
  return max((int(x.name.rpartition('-')[2]) for x in claims), default=0)
