"""The CPU kernel without XLA: the parts of arithmetic and memory in its time.

`loop.cc` runs a case twice: from memory on all threads, and on one thread over
so little data that a second-level cache holds the data. The second time, scaled
to the same amount of work and divided by the threads, is the time that the work
would take if no thread waited for memory.
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
BITS = {'float32': 32, 'bfloat16': 16, 'int8': 8, 'int4': 4}
GROUP = 32  # features of an int4 group
ROTATED = 537_000_000  # bytes that are read before any byte is read again
CACHED = 270_000  # bytes that a second-level cache holds with room to spare
MULTIPLIES = 12_000_000  # of vectors, a thread


@dataclasses.dataclass(frozen=True)
class Attention:
  """One token to full slots: `heads` kv heads, `groups` queries each.

  Fields are in the order of the arguments of `loop_attention` in `loop.cc`.

  Attributes:
    heads, groups, width, slots: of the cache.
    dtype: of the cache, of `BITS`; int8 has a scale a slot, int4 a scale and a
      zero a group of features.
    rotary: width of the rotated key of a latent that is key and value; 0 for
      separate keys and values.
  """

  heads: int
  groups: int
  width: int
  slots: int
  dtype: str
  rotary: int = 0

  @property
  def bytes(self) -> int:
    """Bytes of the cache."""
    streams = 1 if self.rotary else 2
    numbers = streams * self.width + self.rotary
    scales = {'int8': 4 * 2, 'int4': 4 * numbers // GROUP}.get(self.dtype, 0)
    bits = numbers * BITS[self.dtype]
    return self.heads * self.slots * (bits // 8 + scales)

  @property
  def operations(self) -> int:
    """Multiplications and additions, two of each product."""
    product = 2 * self.width + self.rotary
    return 2 * self.heads * self.groups * self.slots * product

  @property
  def small(self) -> 'Attention':
    """The same work on one head and as many slots as `CACHED` bytes hold."""
    single = dataclasses.replace(self, heads=1)
    slots = CACHED * self.slots // single.bytes // 64 * 64
    return dataclasses.replace(single, slots=max(64, min(slots, self.slots)))


@dataclasses.dataclass(frozen=True)
class Projection:
  """`rows` of `width` float32 numbers times a weight.

  Fields are in the order of the arguments of `loop_projection` in `loop.cc`.

  Attributes:
    rows: of the input.
    lines: output channels of the weight.
    width: numbers of a row and of an output channel.
    dtype: of the weight, of `BITS`.
  """

  rows: int
  lines: int
  width: int
  dtype: str

  @property
  def bytes(self) -> int:
    """Bytes of the weight."""
    return self.lines * self.width * BITS[self.dtype] // 8

  @property
  def operations(self) -> int:
    """Multiplications and additions, two of each product."""
    return 2 * self.rows * self.lines * self.width

  @property
  def small(self) -> 'Projection':
    """The same work on as many output channels as `CACHED` bytes hold."""
    lines = CACHED * self.lines // self.bytes // 16 * 16
    return dataclasses.replace(self, lines=max(16, min(lines, self.lines)))


Work = Attention | Projection

CASES: tuple[Work, ...] = (
  *(
    Attention(8, groups, 128, 8192, dtype)
    for dtype in BITS
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
  cases: Sequence[Work] = CASES,
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
    rotate: bytes of copies that a turn passes through.
  """
  lib.loop_lanes.restype = ctypes.c_int64
  threads = os.cpu_count() or 1
  multiplying = _seconds(lib.loop_multiply, [MULTIPLIES, threads], turns).min()
  yield {
    'record': 'machine',
    'threads': threads,
    'read': _read(lib, rotate, threads, turns),
    'flops': 2 * lib.loop_lanes() * MULTIPLIES * threads / multiplying,
  }
  for case in cases:
    kind = type(case).__name__.lower()
    function = getattr(lib, f'loop_{kind}')
    small = case.small
    repeats = max(2, 8 * rotate // 100 // small.bytes)
    cached = np.median(_seconds(function, [*_sizes(small), 1, 1], repeats))
    arithmetic = float(cached) * case.operations / small.operations / threads
    copies = max(2, -(-rotate // case.bytes))
    sizes = [*_sizes(case), threads, copies]
    seconds = float(np.median(_seconds(function, sizes, turns)))
    read = _read(lib, rotate, threads, turns)
    yield {
      'record': kind,
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


def _sizes(case: Work) -> list[int]:
  """Returns a case as arguments of `loop.cc`: its fields, a dtype as bits."""
  fields = dataclasses.astuple(case)
  return [BITS[field] if field in BITS else field for field in fields]


def _seconds(function: Any, sizes: Sequence[int], turns: int) -> np.ndarray:
  """Returns the seconds of each turn of a function of `loop.cc`.

  Args:
    function: takes `sizes`, the turns, and where their seconds go.
    sizes: integers.
    turns: that are timed.
  """
  seconds = (ctypes.c_double * turns)()
  function(*map(ctypes.c_int64, (*sizes, turns)), seconds)
  return np.array(seconds)


def _read(lib: ctypes.CDLL, rotate: int, threads: int, turns: int) -> float:
  """Returns bytes a second; the best turn counts, because it is a limit."""
  return rotate / float(_seconds(lib.loop_read, [rotate, threads], turns).min())
