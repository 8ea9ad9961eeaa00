"""Tensors of a GGUF file: plain numbers, or blocks of codes of a few bits.

The library `gguf` of llama.cpp's authors knows the types of blocks and decodes
them; plain numbers need no library.
"""

import functools
import importlib
import math
import types
from typing import Any

import numpy as np

from kvjax.checkpoints.dequantize import DecodedTensor, PublishedTensor
from kvjax.checkpoints.gguf.header import Entry, Header
from kvjax.checkpoints.tensors import BITS, StoredTensor, check_tiling

PLAIN = {0: 'F32', 1: 'F16', 28: 'F64', 30: 'BF16'}
WIDE = 2048  # weights of a row that is decoded


def open_tensors(header: Header) -> dict[str, PublishedTensor]:
  """Returns the tensors of a file, by name; nothing is read.

  Raises:
    ValueError: the library does not know or decode a type, tensors do not
      follow each other, or the file ends before they do.
  """
  tensors = {
    name: _open_tensor(header, name, entry)
    for name, entry in header.entries.items()
  }
  starts = (header.start + entry.offset for entry in header.entries.values())
  sizes = (tensor.size for tensor in tensors.values())
  spans = zip(starts, sizes, tensors, strict=True)
  check_tiling(spans, header.start, header.size, header.alignment)
  return tensors


def _open_tensor(header: Header, name: str, entry: Entry) -> PublishedTensor:
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
  decode = functools.partial(_decode, kind)
  try:
    decode(np.zeros(block_bytes, np.uint8))
  except NotImplementedError:
    raise ValueError(
      f'tensor {name} is stored as {kind.name}, which the library gguf does '
      'not decode. Quantize the model in another way.'
    ) from None
  return DecodedTensor(name, shape, 'F32', (codes,), decode)


def _decode(kind: Any, codes: np.ndarray) -> np.ndarray:
  block, block_bytes = _library().GGML_QUANT_SIZES[kind]
  # The library decodes 16 rows at a time, and small arrays cost it most.
  together = math.gcd(codes.size // block_bytes, WIDE // block)
  return _library().dequantize(codes.reshape(-1, together * block_bytes), kind)


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
