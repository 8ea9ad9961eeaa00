"""Checkpoints published in few bits, dequantized as they are read.

Two methods, since some models were published in no other form:

- fp8 (DeepSeek-V3, arXiv 2412.19437 section 3.3; Kimi-K2): `weight` in
  float8_e4m3 beside `weight_scale_inv`, one factor a block of `[128, 128]`;
- mxfp4 (gpt-oss; OCP Microscaling Formats 1.0): `_blocks` of 16 bytes, 32
  four-bit floats each, beside `_scales`, an exponent of two a block.

The params are plain arrays in the dtype asked for, bfloat16 by default.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kvjax.checkpoints.tensors import PublishedTensor, StoredTensor

METHODS = 'fp8', 'mxfp4'
# Sign, two bits of exponent, one of mantissa.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])
BIAS = 127  # of an exponent of mxfp4


@dataclasses.dataclass(frozen=True)
class DequantizedTensor:
  """A tensor that two stored ones describe.

  Attributes:
    name: that of the plain tensor.
    shape: of the plain tensor.
    codes, scales: as stored.
    decode: codes and scales to float32.
  """

  name: str
  shape: tuple[int, ...]
  codes: StoredTensor
  scales: StoredTensor
  decode: Callable[[np.ndarray, np.ndarray], np.ndarray]
  dtype: str = 'BF16'  # in which both methods' models were trained

  @property
  def path(self) -> pathlib.Path:
    return self.codes.path

  @property
  def size(self) -> int:
    return self.codes.size + self.scales.size

  def check_dtype(self) -> None:
    """Raises ValueError unless codes and scales have their types."""
    for part in (self.codes, self.scales):
      if part.dtype not in ('F8_E4M3', 'U8', 'F32', 'BF16'):
        raise ValueError(
          f'Tensor {part.name} is stored as {part.dtype}: no part of '
          f'{" or ".join(METHODS)}.'
        )

  def read(self) -> np.ndarray:
    """Returns the plain tensor in float32."""
    return self.decode(self.codes.read(), self.scales.read())

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields it whole: blocks of codes need not end with a row."""
    yield self.read()


def check_method(values: Mapping[str, Any]) -> str | None:
  """Returns the quantization method of a config.json, if it has one.

  Raises:
    ValueError: it is none of `METHODS`, or fp8 without blocks.
  """
  found = values.get('quantization_config')
  if not found:
    return None
  method = found.get('quant_method')
  if method not in METHODS:
    raise ValueError(
      f'Quantization method {method!r} is not supported; supported: '
      f'{", ".join(METHODS)}, and plain weights.'
    )
  if method == 'fp8' and len(found.get('weight_block_size') or ()) != 2:
    raise ValueError(
      'fp8 with weight_block_size='
      f'{found.get("weight_block_size")} is not supported; supported: two '
      'sizes, such as [128, 128].'
    )
  return method


def dequantize(
  values: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, PublishedTensor]:
  """Returns the tensors that the stored ones describe; as they are if plain.

  Raises:
    ValueError: codes or scales are missing or do not fit each other.
  """
  method = check_method(values)
  found: dict[str, PublishedTensor] = dict(tensors)
  if method is None:
    return found
  suffixes = {
    'fp8': ('.weight', '.weight_scale_inv', '.weight'),
    'mxfp4': ('_blocks', '_scales', ''),
  }[method]
  for name in tensors:
    if name.endswith(suffixes[1]):
      stem = name.removesuffix(suffixes[1])
      plain = _pair(values, tensors, stem, suffixes)
      found.pop(name)
      found.pop(plain.codes.name)
      found[plain.name] = plain
  return found


def _pair(values, tensors, stem: str, suffixes) -> DequantizedTensor:
  codes, scales = tensors.get(stem + suffixes[0]), tensors[stem + suffixes[1]]
  if codes is None:
    raise ValueError(f'Tensor {scales.name} scales nothing: no codes with it.')
  if suffixes[2]:
    block = tuple(values['quantization_config']['weight_block_size'])
    shape, decode = codes.shape, _fp8(block)
    fit = tuple(-(-n // b) for n, b in zip(shape, block, strict=False))
  else:
    shape, decode, fit = _mxfp4_shape(codes), _mxfp4, codes.shape[:-1]
  if scales.shape != fit:
    raise ValueError(
      f'Tensor {scales.name} has shape {list(scales.shape)}; '
      f'{codes.name} {list(codes.shape)} needs {list(fit)}.'
    )
  return DequantizedTensor(stem + suffixes[2], shape, codes, scales, decode)


def _fp8(block: tuple[int, ...]):
  def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for axis, size in enumerate(block):
      scales = scales.repeat(size, axis)[
        (slice(None),) * axis + (slice(wide.shape[axis]),)
      ]
    return wide * scales.astype(np.float32)

  return decode


def _mxfp4_shape(codes: StoredTensor) -> tuple[int, ...]:
  if len(codes.shape) != 4 or codes.shape[-1] != 16:
    raise ValueError(
      f'Tensor {codes.name} has shape {list(codes.shape)}; blocks of mxfp4 '
      'are [experts, out, in / 32, 16].'
    )
  experts, out, blocks, _ = codes.shape
  return experts, blocks * 32, out


def _mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Returns `[X, in, out]` of codes `[X, out, in / 32, 16]`."""
  values = np.empty(codes.shape + (2,), np.float32)
  values[..., 0], values[..., 1] = FP4[codes & 15], FP4[codes >> 4]
  exponents = scales.astype(np.int32) - BIAS
  np.ldexp(values, exponents[..., None, None], out=values)
  return values.reshape(codes.shape[:2] + (-1,)).swapaxes(1, 2)
