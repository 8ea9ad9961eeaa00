"""The header of a GGUF file: metadata, and where each tensor is.

The format is in github.com/ggml-org/ggml, docs/gguf.md: counts, metadata of
keys and typed values, a description of each tensor, and the bytes of the
tensors. A file comes from others, so no number in it is trusted: every item
that is counted takes bytes of the file, and what does not fit is refused
before anything of that size is made. (The reader of the library `gguf` counts
to whatever number a header names.)
"""

import dataclasses
import math
import mmap
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kvjax.checkpoints.files import errors_name
from kvjax.checkpoints.tensors import round_up

SUFFIX = '.gguf'
MAGIC = b'GGUF'
VERSIONS = (2, 3)  # the first version had counts of 32 bits
ALIGNMENT = 32  # bytes, where no key says otherwise
MAX_AXES = 4
TEXT, ARRAY = 8, 9
NUMBERS = {
  **dict(enumerate('<u1 <i1 <u2 <i2 <u4 <i4 <f4 ?'.split())),
  **dict(enumerate('<u8 <i8 <f8'.split(), start=10)),
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """What the header says of a tensor.

  Attributes:
    shape: slowest axis first, as in NumPy.
    kind: number of the type.
    offset: of the first byte, from where tensors begin.
  """

  shape: tuple[int, ...]
  kind: int
  offset: int


@dataclasses.dataclass(frozen=True)
class Header:
  """The header of a file.

  Attributes:
    path: of the file.
    metadata: texts, numbers, lists of texts and arrays of numbers, by key.
    entries: by the name of the tensor, in the order of the file.
    start: byte at which tensors begin.
    alignment: of every tensor, in bytes.
    size: of the file, in bytes.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  entries: Mapping[str, Entry]
  start: int
  alignment: int
  size: int


def is_gguf(path: pathlib.Path) -> bool:
  """Returns whether a path is a file with the suffix of the format."""
  return path.suffix.lower() == SUFFIX and path.is_file()


def shortest(number: Any) -> float:
  """Returns the shortest decimal that a float32 stands for: 1e-05 again."""
  return float(str(np.float32(number)))


def read_header(path: pathlib.Path) -> Header:
  """Returns the header of a file; nothing of its tensors is read.

  Raises:
    ValueError: the file is truncated, malformed or of another version, or one
      of several that make a model.
  """
  size = path.stat().st_size
  if size < 24:
    raise ValueError(f'it is truncated or no GGUF file: {size} bytes.')
  with (
    path.open('rb') as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    cursor = _Cursor(data)
    _check_version(cursor.take(4), cursor.whole(4))
    tensors, keys = cursor.whole(8), cursor.whole(8)
    metadata = _read_named(cursor, keys, _read_value)
    entries = _read_named(cursor, tensors, _read_entry)
  alignment = metadata.get('general.alignment', ALIGNMENT)
  if type(alignment) is not int or alignment < 1 or alignment.bit_count() != 1:
    raise ValueError(f'general.alignment={alignment} must be a power of two.')
  if (parts := metadata.get('split.count', 1)) != 1:
    raise ValueError(
      f'split.count={parts} says that the model is in several files, which '
      'is not supported. Make one of them: llama-gguf-split --merge.'
    )
  start = round_up(cursor.at, alignment)
  return Header(path, metadata, entries, start, alignment, size)


def _check_version(magic: bytes, version: int) -> None:
  if magic != MAGIC:
    raise ValueError(f'it begins with {magic!r} and not with {MAGIC!r}.')
  if version not in VERSIONS:
    order = ' (it is big-endian)' if not version & 0xFFFF else ''
    raise ValueError(
      f'version {version} of the format{order} is not supported; supported: '
      '2 and 3, little-endian. Convert the model again.'
    )


class _Cursor:
  """A place in the bytes of a file, which moves with every read."""

  def __init__(self, data: mmap.mmap):
    self.data, self.at, self.size = data, 0, len(data)

  def take(self, size: int) -> bytes:
    begin, self.at = self.at, self.at + size
    if self.at > self.size:
      raise ValueError(
        f'it is truncated: its header needs {self.at} bytes or more, the '
        f'file has {self.size}.'
      )
    return self.data[begin : self.at]

  def whole(self, size: int) -> int:
    return int.from_bytes(self.take(size), 'little')

  def text(self) -> str:
    return self.take(self.whole(8)).decode()

  def numbers(self, kind: int, count: int) -> np.ndarray:
    if kind not in NUMBERS:
      raise ValueError(f'type {kind} of a value is unknown, or nests arrays.')
    dtype = np.dtype(NUMBERS[kind])
    return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _read_named(
  cursor: _Cursor, count: int, read: Callable[[_Cursor], Any]
) -> dict[str, Any]:
  """Returns what follows each of `count` names."""
  found: dict[str, Any] = {}
  for _ in range(count):
    name = cursor.text()
    if name in found:
      raise ValueError(f'the key or tensor {name!r} is there twice.')
    with errors_name(repr(name)):
      found[name] = read(cursor)
  return found


def _read_value(cursor: _Cursor) -> Any:
  kind = cursor.whole(4)
  if kind == TEXT:
    return cursor.text()
  if kind == ARRAY:
    kind, count = cursor.whole(4), cursor.whole(8)
    if kind == TEXT:
      return [cursor.text() for _ in range(count)]
    return cursor.numbers(kind, count)
  value = cursor.numbers(kind, 1)[0]
  return shortest(value) if value.dtype == np.float32 else value.item()


def _read_entry(cursor: _Cursor) -> Entry:
  axes = cursor.whole(4)
  if not 1 <= axes <= MAX_AXES:
    raise ValueError(f'it has {axes} axes: 1 to {MAX_AXES} are possible.')
  shape = tuple(cursor.whole(8) for _ in range(axes))[::-1]
  if not math.prod(shape):
    raise ValueError(f'its shape {list(shape)} is empty.')
  return Entry(shape, cursor.whole(4), cursor.whole(8))
