"""Tensors of a GGUF file: plain numbers, or blocks of codes of a few bits.

The library `gguf` of llama.cpp's authors knows the types of blocks and decodes
them; plain numbers need no library.
"""

import dataclasses
import importlib
import math
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from kvjax.checkpoints.gguf.header import Entry, Header, end_of
from kvjax.checkpoints.tensors import BITS, BLOCK, StoredTensor

PLAIN = {0: 'F32', 1: 'F16', 28: 'F64', 30: 'BF16'}
WIDE = 2048  # weights of a row that is decoded


@dataclasses.dataclass(frozen=True)
class BlockTensor:
  """A tensor of blocks, which is float32 once it is decoded.

  Attributes:
    name: in the file.
    shape: of the weights.
    kind: member of `gguf.GGMLQuantizationType`.
    codes: bytes `[rows, bytes of a row]`, for rows of the first axis.
    dtype: what the blocks decode to.
  """

  name: str
  shape: tuple[int, ...]
  kind: Any
  codes: StoredTensor
  dtype: str = 'F32'

  @property
  def size(self) -> int:
    return self.codes.size

  def check_dtype(self) -> None:
    """Raises ValueError for a type that the library does not decode."""
    block = np.zeros(_library().GGML_QUANT_SIZES[self.kind][1], np.uint8)
    try:
      _library().dequantize(block, self.kind)
    except NotImplementedError:
      raise ValueError(
        f'Tensor {self.name} is stored as {self.kind.name}, which the library '
        'gguf does not decode. Quantize the model in another way.'
      ) from None

  def read(self) -> np.ndarray:
    """Returns the weights."""
    weights = np.empty(self.shape, np.float32)
    start = 0
    for block in self.blocks():
      weights[start : start + len(block)] = block
      start += len(block)
    return weights

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields consecutive rows (first axis), at most BLOCK bytes of weights.

    A row that is larger than BLOCK is a block by itself.
    """
    rows, row_bytes = self.codes.shape
    step = max(1, BLOCK * rows // (4 * math.prod(self.shape)))
    for start in range(0, rows, step):
      count = min(step, rows - start)
      codes = dataclasses.replace(
        self.codes,
        shape=(count, row_bytes),
        offset=self.codes.offset + start * row_bytes,
        size=count * row_bytes,
      )
      yield self._decode(codes.read()).reshape((-1, *self.shape[1:]))

  def _decode(self, codes: np.ndarray) -> np.ndarray:
    block, block_bytes = _library().GGML_QUANT_SIZES[self.kind]
    # The library decodes 16 rows at a time, and small arrays cost it most.
    together = math.gcd(codes.size // block_bytes, WIDE // block)
    wide = codes.reshape(-1, together * block_bytes)
    return _library().dequantize(wide, self.kind)


def open_tensors(header: Header) -> dict[str, StoredTensor | BlockTensor]:
  """Returns the tensors of a file, by name; nothing is read.

  Raises:
    ValueError: a type is unknown, tensors do not follow each other, or the
      file ends before they do.
  """
  tensors: dict[str, StoredTensor | BlockTensor] = {}
  end = 0
  for name, entry in header.entries.items():
    tensor = tensors[name] = open_tensor(header, name)
    if entry.offset != end:
      raise ValueError(
        f'tensor {name} begins at byte {entry.offset} of the tensors; the '
        f'tensor before it ends at byte {end}. Tensors follow each other.'
      )
    end = end_of(header, entry, tensor.size)
  return tensors


def open_tensor(header: Header, name: str) -> StoredTensor | BlockTensor:
  """Returns one tensor of a file, which is checked to be within the file."""
  entry = header.entries[name]
  block, block_bytes = _block(name, entry)
  if entry.shape[-1] % block:
    raise ValueError(
      f'tensor {name} {list(entry.shape)} has rows of {entry.shape[-1]} '
      f'weights; its type has blocks of {block}.'
    )
  size = math.prod(entry.shape) // block * block_bytes
  offset = header.start + entry.offset
  if offset + size > header.size:
    raise ValueError(
      f'it is truncated: tensor {name} ends at byte {offset + size} of '
      f'{header.size}.'
    )
  plain = PLAIN.get(entry.kind)
  if plain is not None:
    return StoredTensor(name, entry.shape, plain, header.path, offset, size)
  rows = entry.shape[0] if len(entry.shape) > 1 else 1
  codes = StoredTensor(
    name, (rows, size // rows), 'U8', header.path, offset, size
  )
  kind = _library().GGMLQuantizationType(entry.kind)
  return BlockTensor(name, entry.shape, kind, codes)


def _block(name: str, entry: Entry) -> tuple[int, int]:
  """Returns the weights and the bytes of a block."""
  if entry.kind in PLAIN:
    return 1, BITS[PLAIN[entry.kind]] // 8
  library = _library()
  try:
    return library.GGML_QUANT_SIZES[library.GGMLQuantizationType(entry.kind)]
  except (KeyError, ValueError):
    raise ValueError(
      f'tensor {name} has the type {entry.kind}, which the library gguf does '
      'not know. Update it: pip install --upgrade gguf.'
    ) from None


def _library() -> types.ModuleType:
  try:
    return importlib.import_module('gguf')
  except ImportError:
    raise ValueError(
      'its weights are blocks of a few bits, which the library gguf decodes. '
      "Install kvjax with its extra: pip install 'kvjax[gguf]'."
    ) from None
