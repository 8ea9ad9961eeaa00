"""The CPU kernel without XLA: what is arithmetic in its time, what memory's.

A case runs by `loop.cc` twice: from memory, on all threads, and on one thread
over so little that a second-level cache holds it. The second, for as many
numbers and shared out evenly, is what the work takes where nobody waits for
memory.
"""

import ctypes
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kvjax.native import build as library

SOURCE = pathlib.Path(__file__).with_name('loop.cc')
SIZES = {'float32': 4, 'bfloat16': 2, 'int8': 1}
ROTATED = 537_000_000  # bytes that are read before any is read again
HELD = 270_000  # bytes that a second-level cache holds with room to spare
MULTIPLIES = 12_000_000  # of vectors, a thread


@dataclasses.dataclass(frozen=True)
class Attention:
  """One token to full slots: `heads` kv heads, `groups` queries each.

  Attributes:
    heads, groups, width, slots: of the cache.
    dtype: of the cache, of `SIZES`; int8 has a scale a slot.
    rotary: width of a rotated key beside a latent that is key and value; 0
      for keys and values.
  """

  heads: int
  groups: int
  width: int
  slots: int
  dtype: str
  rotary: int = 0

  @property
  def bytes(self) -> int:
    """That the cache holds."""
    size, streams = SIZES[self.dtype], 1 if self.rotary else 2
    numbers = streams * self.width + self.rotary
    scales = 4 * 2 if self.dtype == 'int8' else 0
    return self.heads * self.slots * (numbers * size + scales)

  @property
  def operations(self) -> int:
    """Multiplications and additions, two of each product."""
    product = 2 * self.width + self.rotary
    return 2 * self.heads * self.groups * self.slots * product

  @property
  def small(self) -> 'Attention':
    """One head, and as many slots as a cache of the processor holds."""
    one = dataclasses.replace(self, heads=1)
    slots = HELD * self.slots // one.bytes // 64 * 64
    return dataclasses.replace(one, slots=max(64, min(slots, self.slots)))

  def run(self, lib: ctypes.CDLL, *pace: Any) -> None:
    """Fills the seconds of each turn; `pace` ends with them."""
    sizes = self.heads, self.groups, self.width, self.slots, self.rotary
    lib.loop_attend(*map(_int, (*sizes, SIZES[self.dtype])), *pace)


@dataclasses.dataclass(frozen=True)
class Projection:
  """`rows` of `width` float32 numbers times a weight of `lines`."""

  rows: int
  lines: int
  width: int
  dtype: str

  @property
  def bytes(self) -> int:
    """Of the weight."""
    return self.lines * self.width * SIZES[self.dtype]

  @property
  def operations(self) -> int:
    """Multiplications and additions, two of each product."""
    return 2 * self.rows * self.lines * self.width

  @property
  def small(self) -> 'Projection':
    """As many lines as a cache of the processor holds."""
    lines = HELD * self.lines // self.bytes // 16 * 16
    return dataclasses.replace(self, lines=max(16, min(lines, self.lines)))

  def run(self, lib: ctypes.CDLL, *pace: Any) -> None:
    """Fills the seconds of each turn; `pace` ends with them."""
    sizes = self.rows, self.lines, self.width, SIZES[self.dtype]
    lib.loop_project(*map(_int, sizes), *pace)


Case = Attention | Projection

CASES: tuple[Case, ...] = (
  *(
    Attention(8, groups, 128, 8192, dtype)
    for dtype in SIZES
    for groups in (1, 4, 8)
  ),
  Attention(8, 4, 64, 8192, 'float32'),
  Attention(8, 4, 64, 8192, 'int8'),
  Attention(1, 16, 512, 8192, 'float32', rotary=64),
  Attention(1, 16, 512, 8192, 'bfloat16', rotary=64),
  *(
    Projection(rows, lines, width, dtype)
    for rows in (1, 8)
    for lines, width in ((1024, 1024), (2816, 1024), (8192, 1024))
    for dtype in ('float32', 'int8')
  ),
)


def build(folder: pathlib.Path) -> ctypes.CDLL:
  """Compiles `loop.cc` into a folder and returns its functions.

  Raises:
    BuildError: it cannot be compiled here.
  """
  return ctypes.CDLL(str(library.compiled(SOURCE, folder / 'loop.so')))


def rows(
  lib: ctypes.CDLL,
  cases: Sequence[Case] = CASES,
  turns: int = 5,
  rotate: int = ROTATED,
) -> Iterator[dict[str, Any]]:
  """Yields what the machine does, then a record a case.

  Of a case: `seconds` from memory on all threads, `arithmetic` seconds of the
  same work without memory, and `reading` seconds of its bytes alone.

  Args:
    lib: of `build`.
    cases: that are timed.
    turns: of each, of which the median counts.
    rotate: bytes of copies that are passed through.
  """
  lib.loop_lanes.restype = ctypes.c_int64
  threads = os.cpu_count() or 1
  most = _seconds(lib.loop_multiply, MULTIPLIES, threads, turns=turns).min()
  flops = 2 * lib.loop_lanes() * MULTIPLIES * threads / most
  read = _read(lib, rotate, threads, turns)
  yield {
      'record': 'machine', 'threads': threads, 'read': read, 'flops': flops,
  }  # fmt: skip
  for case in cases:
    small, copies = case.small, max(2, -(-rotate // case.bytes))
    again = max(2, 8 * rotate // 100 // small.bytes)
    held = _median(lib, small, 1, 1, again)
    arithmetic = held * case.operations / small.operations / threads
    seconds = _median(lib, case, threads, copies, turns)
    read = _read(lib, rotate, threads, turns)
    yield {
      'record': type(case).__name__.lower(),
      **dataclasses.asdict(case),
      'bytes': case.bytes,
      'operations': case.operations,
      'seconds': seconds,
      'arithmetic': arithmetic,
      'flops': case.operations / arithmetic,
      'read': read,
      'reading': case.bytes / read,
      'of_floor': case.bytes / read / seconds,
    }


def _int(x: int) -> ctypes.c_int64:
  return ctypes.c_int64(x)


def _seconds(call: Any, *given: Any, turns: int) -> np.ndarray:
  """Returns the seconds of each turn that a function of the library filled."""
  seconds = (ctypes.c_double * turns)()
  call(*map(_int, given), _int(turns), seconds)
  return np.array(seconds)


def _median(
  lib: ctypes.CDLL, case: Case, threads: int, copies: int, turns: int
) -> float:
  def run(*pace):
    case.run(lib, *pace)

  return float(np.median(_seconds(run, threads, copies, turns=turns)))


def _read(lib: ctypes.CDLL, rotate: int, threads: int, turns: int) -> float:
  """Returns bytes a second; the best turn, as it is a limit."""
  return rotate / float(
    _seconds(lib.loop_read, rotate, threads, turns=turns).min()
  )
