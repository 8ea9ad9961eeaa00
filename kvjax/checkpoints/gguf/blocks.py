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

from kvjax.checkpoints.gguf.header import Entry, Header
from kvjax.checkpoints.tensors import BITS, BLOCK, StoredTensor, check_tiling

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
  def offset(self) -> int:
    return self.codes.offset

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
    return np.concatenate(list(self.blocks()))

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields consecutive rows (first axis), at most BLOCK bytes of weights.

    A row that is larger than BLOCK is a block by itself.
    """
    weights_bytes = 4 * math.prod(self.shape)
    for part in self.codes.parts(BLOCK * self.size // weights_bytes):
      yield self._decode(part.read()).reshape((-1, *self.shape[1:]))

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
  tensors = {
    name: _open_tensor(header, name, entry)
    for name, entry in header.entries.items()
  }
  spans = ((x.offset, x.size, x.name) for x in tensors.values())
  check_tiling(spans, header.start, header.size, header.alignment)
  return tensors


def _open_tensor(
  header: Header, name: str, entry: Entry
) -> StoredTensor | BlockTensor:
  offset, shape = header.start + entry.offset, entry.shape
  dtype = PLAIN.get(entry.kind)
  if dtype is not None:
    size = math.prod(shape) * BITS[dtype] // 8
    return StoredTensor(name, shape, dtype, header.path, offset, size)
  block, block_bytes = _block_sizes(name, entry.kind)
  if shape[-1] % block:
    raise ValueError(
      f'tensor {name} {list(shape)} has rows of {shape[-1]} weights; its type '
      f'has blocks of {block}.'
    )
  size = math.prod(shape) // block * block_bytes
  rows = shape[0] if len(shape) > 1 else 1
  codes = StoredTensor(
    name, (rows, size // rows), 'U8', header.path, offset, size
  )
  kind = _library().GGMLQuantizationType(entry.kind)
  return BlockTensor(name, shape, kind, codes)


def _block_sizes(name: str, kind: int) -> tuple[int, int]:
  """Returns the weights and the bytes of a block."""
  library = _library()
  try:
    return library.GGML_QUANT_SIZES[library.GGMLQuantizationType(kind)]
  except (KeyError, ValueError):
    raise ValueError(
      f'tensor {name} has the type {kind}, which the library gguf does not '
      'know. Update it: pip install --upgrade gguf.'
    ) from None


def _library() -> types.ModuleType:
  try:
    return importlib.import_module('gguf')
  except ImportError:
    raise ValueError(
      'its weights are blocks of a few bits, which the library gguf decodes. '
      "Install kvjax with its extra: pip install 'kvjax[gguf]'."
    ) from None
