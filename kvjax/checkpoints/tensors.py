"""Reads safetensors files, single or sharded, tensor by tensor.

The format is a little-endian 64-bit length, a JSON header and the bytes of the
tensors (github.com/huggingface/safetensors, README). A tensor is mapped only
while it is read, and a large tensor in blocks of rows. Pages of mapped files
count as resident memory, so a whole mapped file would be a second copy.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from kvjax.arguments import is_whole
from kvjax.checkpoints.files import errors_name, is_present
from kvjax.strict_json import parse_object

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
MAX_AXES = 64  # NumPy has no arrays of more
MAX_WHOLE = (1 << 64) - 1  # the official reader has 64 bits
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
BLOCK = 1 << 22  # bytes of a large tensor that are mapped at a time

Index = tuple[slice, ...]
"""A part of a tensor: start and stop on each axis."""

DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
}
CODES: dict[str, Any] = {'F8_E4M3': ml_dtypes.float8_e4m3fn, 'U8': np.uint8}
READABLE = DTYPES | CODES
# Of an element, for every dtype of the format.
BITS = {
  'F4': 4,
  **dict.fromkeys(('F6_E2M3', 'F6_E3M2'), 6),
  **dict.fromkeys(('BOOL', 'U8', 'I8'), 8),
  **dict.fromkeys(('F8_E5M2', 'F8_E4M3', 'F8_E8M0'), 8),
  **dict.fromkeys(('I16', 'U16', 'F16', 'BF16'), 16),
  **dict.fromkeys(('I32', 'U32', 'F32'), 32),
  **dict.fromkeys(('I64', 'U64', 'F64', 'C64'), 64),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A tensor as it is in a file.

  Attributes:
    name: as published.
    shape: as published.
    dtype: as the format spells it ('F32', 'BF16', ...).
    path: of the file.
    offset: of the tensor's first byte in the file.
    size: in bytes.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  path: pathlib.Path
  offset: int
  size: int

  def read(self, index: Index = ()) -> np.ndarray:
    """Returns a read-only view of the tensor or a part, mapped from its file.

    Only the bytes of the part are read, when they are used.
    """
    dtype = np.dtype(READABLE[self.dtype])
    if not self.size:
      return np.empty(self.shape, dtype)
    mapped = np.memmap(
      self.path, np.uint8, 'r', offset=self.offset, shape=(self.size,)
    )
    whole = mapped.view(dtype).reshape(self.shape)
    return whole[index] if index else whole

  def blocks(self, index: Index = ()) -> Iterator[np.ndarray]:
    """Yields views of consecutive rows (first axis), at most BLOCK bytes each.

    A row that is larger than BLOCK is a block by itself.

    Args:
      index: of the part that is read; `()` for the whole tensor.
    """
    if self.size <= BLOCK:
      yield self.read(index)
      return
    rows, columns = index[:1], index[1:]
    for part in self.parts(BLOCK * self.shape[0] // self.size, *rows):
      yield part.read((slice(None), *columns))

  def parts(
    self, count: int, rows: slice = slice(None)
  ) -> Iterator['StoredTensor']:
    """Yields tensors of `count` consecutive rows (first axis), or of 1."""
    first, stop, _ = rows.indices(self.shape[0])
    row_bytes = self.size // self.shape[0]
    for start in range(first, stop, max(1, count)):
      part = min(max(1, count), stop - start)
      yield dataclasses.replace(
        self,
        shape=(part, *self.shape[1:]),
        offset=self.offset + start * row_bytes,
        size=part * row_bytes,
      )


def open_tensors(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns every tensor of a checkpoint directory, by name.

  Args:
    path: a directory with `model.safetensors`, or with an index and its shards.

  Raises:
    FileNotFoundError: neither is there, or a shard is missing.
    ValueError: a file is no regular file, truncated or malformed, or the index
      and its shards disagree; the message names file and tensor.
  """
  index = path / INDEX
  if is_present(index):
    return _open_shards(index)
  files = [path / SINGLE] if is_present(path / SINGLE) else []
  if not files:
    files = sorted(path.glob('*.safetensors'))
  if len(files) != 1:
    raise FileNotFoundError(
      f'{path} has neither {SINGLE} nor {INDEX} ({len(files)} other '
      '*.safetensors). kvjax reads safetensors only; convert other formats '
      'first.'
    )
  return read_header(files[0])


def _open_shards(index: pathlib.Path) -> dict[str, StoredTensor]:
  path = index.parent
  where = parse_object(index.read_bytes(), index).get('weight_map')
  if not isinstance(where, dict) or not all(
    isinstance(shard, str) for shard in where.values()
  ):
    raise ValueError(
      f'{index} is no index of shards: weight_map must be an object that '
      'gives each tensor the name of its file.'
    )
  tensors: dict[str, StoredTensor] = {}
  for shard in sorted(set(where.values())):
    # os.path: is_file raises an OSError for a name that is too long.
    is_file = os.path.isfile(path / shard)
    if pathlib.PurePath(shard).name != shard or not is_file:
      raise FileNotFoundError(
        f'{index} names the shard {shard!r}: no file of this directory.'
      )
    for name, tensor in read_header(path / shard).items():
      if where.get(name) != shard:
        raise ValueError(
          f'Tensor {name} is in {shard}, but {index.name} says '
          f'{where.get(name, "nothing of it")}.'
        )
      tensors[name] = tensor
  if lost := sorted(where.keys() - tensors.keys()):
    raise ValueError(
      f'Tensor {lost[0]} is in no shard, though {index.name} places it in '
      f'{where[lost[0]]} ({len(lost)} such).'
    )
  return tensors


def read_header(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Returns the tensors of a file, by name; together they are all its bytes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no regular file, truncated or malformed.
  """
  if not is_present(path):
    raise FileNotFoundError(f'There is no file {path}.')
  total = path.stat().st_size
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    if total < 8 or not 2 <= length <= min(total - 8, MAX_HEADER):
      raise ValueError(
        f'{path}: it is truncated or no safetensors file: {total} bytes, a '
        f'header of {length}.'
      )
    text = file.read(length)
  header = parse_object(text, f'{path} has a header that')
  if not text.startswith(b'{') or not _is_texts(header.get('__metadata__')):
    raise ValueError(
      f'{path} has a header that does not begin with an object, or whose '
      '__metadata__ is more than texts by name: write the file again.'
    )
  start = 8 + length
  tensors = {
    name: _read_entry(path, name, entry, start)
    for name, entry in header.items()
    if name != '__metadata__'
  }
  with errors_name(path):
    spans = sorted((x.offset, x.size, x.name) for x in tensors.values())
    end = check_tiling(spans, start, total)
    if end < total:
      raise ValueError(
        f'it has {total - end} bytes after its last tensor, which belong to '
        'no tensor: write the file again.'
      )
  return tensors


def _read_entry(
  path: pathlib.Path, name: str, entry: Any, start: int
) -> StoredTensor:
  """Returns a tensor of a header.

  Args:
    path: of the file.
    name: of the tensor.
    entry: what the header says of the tensor.
    start: byte of the file at which tensors begin.
  """
  match entry:
    case {
      'dtype': str(dtype),
      'shape': list(shape),
      'data_offsets': [begin, end],
    } if (
      len(shape) <= MAX_AXES
      and all(is_whole(x, 0, MAX_WHOLE) for x in (*shape, begin, end))
      and begin <= end
    ):
      size = end - begin
    case _:
      raise ValueError(
        f'{path} describes tensor {name} badly: it needs a dtype (a text), a '
        'shape (at most 64 whole numbers from 0 on) and data_offsets (two of '
        'them, in order).'
      )
  if dtype not in BITS:
    raise ValueError(
      f'{path}: tensor {name} has the dtype {dtype}; the format knows '
      f'{", ".join(BITS)}.'
    )
  needed = math.prod(shape) * BITS[dtype]
  if needed != 8 * size:
    raise ValueError(
      f'{path}: tensor {name} {shape} of {dtype} takes {needed / 8:.16g} '
      f'bytes; the header gives it {size}.'
    )
  return StoredTensor(name, tuple(shape), dtype, path, start + begin, size)


def _is_texts(metadata: Any) -> bool:
  if metadata is None:
    return True
  return isinstance(metadata, dict) and all(
    isinstance(value, str) for value in metadata.values()
  )


def check_tiling(
  spans: Iterable[tuple[int, int, str]],
  start: int,
  total: int,
  alignment: int = 1,
) -> int:
  """Returns where tensors end that follow each other within a file.

  Two tensors of the same bytes, or bytes of no tensor, are read by no other
  reader of the format.

  Args:
    spans: offset, size and name of each tensor of the file, in order.
    start: byte of the file at which tensors begin.
    total: bytes of the file.
    alignment: of every tensor, in bytes.

  Raises:
    ValueError: a tensor is elsewhere, or the file ends before its tensors do.
  """
  end = start
  for offset, size, name in spans:
    if offset != round_up(end, alignment):
      raise ValueError(
        f'tensor {name} begins at byte {offset} of the file; the tensor before '
        f'it ends at byte {end}. Tensors must follow each other without holes '
        'or shared bytes: write the file again.'
      )
    end = offset + size
  if end > total:
    raise ValueError(
      f'it is truncated: its tensors end at byte {end} of {total}.'
    )
  return end


def round_up(position: int, alignment: int) -> int:
  """Returns the first multiple of `alignment` from a position on."""
  return -(-position // alignment) * alignment
