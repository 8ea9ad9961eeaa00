"""Checkpoints published in few bits, dequantized as they are read.

Some models were published in no other form than one of these two:

- fp8 (DeepSeek-V3, arXiv 2412.19437 section 3.3; Kimi-K2): `weight` in
  float8_e4m3 and `weight_scale_inv`, a factor for each block of `[128, 128]`;
- mxfp4 (gpt-oss; OCP Microscaling Formats 1.0): `_blocks` of 16 bytes, each 32
  four-bit floats, and `_scales`, an exponent of two for each block.

The params are plain arrays in the requested dtype, bfloat16 by default.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kvjax.checkpoints.hf_config import Settings
from kvjax.checkpoints.tensors import BLOCK, Index, StoredTensor

# How the names of scales, of codes and of the plain tensor end, by method.
ENDINGS = {
  'fp8': ('.weight_scale_inv', '.weight', '.weight'),
  'mxfp4': ('_scales', '_blocks', ''),
}
# The dtypes of codes and of scales, by method.
PARTS = {
  'fp8': (('F8_E4M3', 'U8'), ('F32', 'BF16')),
  'mxfp4': (('U8',), ('U8',)),
}
# A four-bit float has a sign, two bits of exponent and one of mantissa.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])
BIAS = 127  # of an exponent of mxfp4


@dataclasses.dataclass(frozen=True)
class DecodedTensor:
  """A tensor that is computed from what is stored.

  Attributes:
    name: of the plain tensor.
    shape: of the plain tensor.
    dtype: that stands for its precision, as the format spells it.
    parts: as stored.
    decode: the parts, or the same rows of all, to float32.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  parts: tuple[StoredTensor, ...]
  decode: Callable[..., np.ndarray]

  @property
  def size(self) -> int:
    return sum(part.size for part in self.parts)

  def read(self) -> np.ndarray:
    """Returns the plain tensor in float32."""
    plain = np.empty(self.shape, np.float32)
    start = 0
    for block in self.blocks():
      plain[start : start + len(block)] = block
      start += len(block)
    return plain

  def blocks(self, index: Index = ()) -> Iterator[np.ndarray]:
    """Yields consecutive rows (first axis), at most BLOCK bytes of float32.

    A row that is larger than BLOCK is a block by itself, and so is a tensor
    whose parts have other rows than it has (fp8): it is decoded whole.

    Args:
      index: of the part that is yielded; `()` for the whole tensor.
    """
    if any(part.shape[0] != self.shape[0] for part in self.parts):
      whole = self.decode(*(part.read() for part in self.parts))
      yield whole.reshape(self.shape)[index]
      return
    rows, columns = index[:1], index[1:]
    count = BLOCK * self.shape[0] // (4 * math.prod(self.shape))
    for parts in zip(*(x.parts(count, *rows) for x in self.parts), strict=True):
      block = self.decode(*(part.read() for part in parts))
      yield block.reshape((-1, *self.shape[1:]))[(slice(None), *columns)]


# What a param is read from.
PublishedTensor = StoredTensor | DecodedTensor


def check_method(values: Mapping[str, Any]) -> str | None:
  """Returns the quantization method of a config.json, if it has a method.

  Raises:
    ValueError: the method is not in `ENDINGS`, or is fp8 without blocks.
  """
  quantization = Settings(Settings(values).get('quantization_config', {}))
  if not quantization.values:
    return None
  method = quantization.raw('quant_method')
  if method not in ENDINGS:
    raise ValueError(
      f'Quantization method {method!r} is not supported; supported: '
      f'{", ".join(ENDINGS)}, and plain weights.'
    )
  block = quantization.raw('weight_block_size')
  if method == 'fp8' and len(block or ()) != 2:
    raise ValueError(
      f'fp8 with weight_block_size={block} is not supported; supported: two '
      'sizes, such as [128, 128].'
    )
  return method


def dequantize_tensors(
  values: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, PublishedTensor]:
  """Returns the plain tensors that the stored tensors describe.

  Nothing is read. Tensors without scales are returned as they are.

  Args:
    values: of config.json.
    tensors: by stored name.

  Raises:
    ValueError: codes or scales are missing or do not fit each other.
  """
  method = check_method(values)
  result: dict[str, PublishedTensor] = dict(tensors)
  if method is None:
    return result
  block = values['quantization_config'].get('weight_block_size')
  scales_ending, codes_ending, plain_ending = ENDINGS[method]
  for name, scales in tensors.items():
    if not name.endswith(scales_ending):
      continue
    stem = name.removesuffix(scales_ending)
    plain = stem + plain_ending
    codes = tensors.get(stem + codes_ending)
    if codes is None:
      raise ValueError(f'Tensor {name} scales nothing: no codes with it.')
    decode: Callable[..., np.ndarray]
    if method == 'fp8':
      decode = functools.partial(_fp8, block)
      shape = codes.shape
      if len(shape) != 2:
        raise ValueError(
          f'Tensor {codes.name} has shape {list(shape)}; blocks of fp8 are '
          'parts of a matrix.'
        )
      blocks = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    else:
      decode = _mxfp4
      shape, blocks = _mxfp4_shapes(codes)
    if scales.shape != blocks:
      raise ValueError(
        f'Tensor {name} has shape {list(scales.shape)}; '
        f'{codes.name} {list(codes.shape)} needs {list(blocks)}.'
      )
    del result[name]
    del result[codes.name]
    for part, dtypes in zip((codes, scales), PARTS[method], strict=True):
      if part.dtype not in dtypes:
        raise ValueError(
          f'Tensor {part.name} is stored as {part.dtype}; as a part of '
          f'{plain} it must be {" or ".join(dtypes)}.'
        )
    # Models of both methods were trained in bfloat16.
    result[plain] = DecodedTensor(plain, shape, 'BF16', (codes, scales), decode)
  return result


def _mxfp4_shapes(
  codes: StoredTensor,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the shapes of the plain tensor and of the scales."""
  if len(codes.shape) != 4 or codes.shape[-1] != 16:
    raise ValueError(
      f'Tensor {codes.name} has shape {list(codes.shape)}; blocks of mxfp4 '
      'are [experts, out, in / 32, 16].'
    )
  experts, out, blocks, _ = codes.shape
  return (experts, blocks * 32, out), (experts, out, blocks)


def _fp8(
  block: tuple[int, int], codes: np.ndarray, scales: np.ndarray
) -> np.ndarray:
  wide = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
  rows, columns = wide.shape
  # The last blocks may reach beyond the matrix, and a block of config.json may
  # be larger than every matrix.
  factors = scales.repeat(min(block[0], rows), axis=0)[:rows]
  factors = factors.repeat(min(block[1], columns), axis=1)[:, :columns]
  return wide * factors.astype(np.float32)


def _mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Returns `[experts, in, out]` of codes `[experts, out, in / 32, 16]`."""
  values = np.empty(codes.shape + (2,), np.float32)
  # The low half of a byte comes first.
  values[..., 0] = FP4[codes & 15]
  values[..., 1] = FP4[codes >> 4]
  exponents = scales.astype(np.int32) - BIAS
  np.ldexp(values, exponents[..., None, None], out=values)
  return values.reshape(codes.shape[:2] + (-1,)).swapaxes(1, 2)
