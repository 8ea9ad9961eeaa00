"""Checkpoints published in few bits, dequantized as they are read.

Some models were published in no other form than one of these two:

- fp8 (DeepSeek-V3, arXiv 2412.19437 section 3.3; Kimi-K2): `weight` in
  float8_e4m3 and `weight_scale_inv`, a factor for each block of `[128, 128]`;
- mxfp4 (gpt-oss; OCP Microscaling Formats 1.0): `_blocks` of 16 bytes, each 32
  four-bit floats, and `_scales`, an exponent of two for each block.

The params are plain arrays in the requested dtype, bfloat16 by default.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kvjax.checkpoints.tensors import PublishedTensor, StoredTensor

METHODS = ('fp8', 'mxfp4')
# A four-bit float has a sign, two bits of exponent and one of mantissa.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([FP4, -FP4])
BIAS = 127  # of an exponent of mxfp4

Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class DequantizedTensor:
  """A tensor that two stored tensors describe.

  Attributes:
    name: of the plain tensor.
    shape: of the plain tensor.
    codes, scales: as stored.
    decode: codes and scales to float32.
    dtype: in which both methods' models were trained.
  """

  name: str
  shape: tuple[int, ...]
  codes: StoredTensor
  scales: StoredTensor
  decode: Decode
  dtype: str = 'BF16'

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
    """Yields the whole tensor: blocks of codes need not end with a row."""
    yield self.read()


def check_method(values: Mapping[str, Any]) -> str | None:
  """Returns the quantization method of a config.json, if it has a method.

  Raises:
    ValueError: the method is not in `METHODS`, or is fp8 without blocks.
  """
  quantization = values.get('quantization_config')
  if not quantization:
    return None
  method = quantization.get('quant_method')
  if method not in METHODS:
    raise ValueError(
      f'Quantization method {method!r} is not supported; supported: '
      f'{", ".join(METHODS)}, and plain weights.'
    )
  block = quantization.get('weight_block_size')
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
  block = tuple(values['quantization_config'].get('weight_block_size') or ())
  for name, scales in tensors.items():
    if method == 'fp8' and name.endswith('.weight_scale_inv'):
      plain = _fp8_tensor(tensors, scales, block)
    elif method == 'mxfp4' and name.endswith('_scales'):
      plain = _mxfp4_tensor(tensors, scales)
    else:
      continue
    del result[name]
    del result[plain.codes.name]
    result[plain.name] = plain
  return result


def _fp8_tensor(
  tensors: Mapping[str, StoredTensor],
  scales: StoredTensor,
  block: tuple[int, ...],
) -> DequantizedTensor:
  name = scales.name.removesuffix('_scale_inv')
  codes = _find_codes(tensors, name, scales)
  blocks = [-(-n // b) for n, b in zip(codes.shape, block, strict=False)]
  _check_scales(codes, scales, tuple(blocks))
  return DequantizedTensor(name, codes.shape, codes, scales, _fp8(block))


def _mxfp4_tensor(
  tensors: Mapping[str, StoredTensor], scales: StoredTensor
) -> DequantizedTensor:
  name = scales.name.removesuffix('_scales')
  codes = _find_codes(tensors, f'{name}_blocks', scales)
  if len(codes.shape) != 4 or codes.shape[-1] != 16:
    raise ValueError(
      f'Tensor {codes.name} has shape {list(codes.shape)}; blocks of mxfp4 '
      'are [experts, out, in / 32, 16].'
    )
  experts, out, blocks, _ = codes.shape
  _check_scales(codes, scales, (experts, out, blocks))
  shape = (experts, blocks * 32, out)
  return DequantizedTensor(name, shape, codes, scales, _mxfp4)


def _find_codes(
  tensors: Mapping[str, StoredTensor], name: str, scales: StoredTensor
) -> StoredTensor:
  codes = tensors.get(name)
  if codes is None:
    raise ValueError(f'Tensor {scales.name} scales nothing: no codes with it.')
  return codes


def _check_scales(
  codes: StoredTensor, scales: StoredTensor, shape: tuple[int, ...]
) -> None:
  if scales.shape != shape:
    raise ValueError(
      f'Tensor {scales.name} has shape {list(scales.shape)}; '
      f'{codes.name} {list(codes.shape)} needs {list(shape)}.'
    )


def _fp8(block: tuple[int, ...]) -> Decode:
  def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    wide = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    rows, columns = wide.shape
    # The last blocks may reach beyond the matrix.
    factors = scales.repeat(block[0], axis=0)[:rows]
    factors = factors.repeat(block[1], axis=1)[:, :columns]
    return wide * factors.astype(np.float32)

  return decode


def _mxfp4(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
  """Returns `[experts, in, out]` of codes `[experts, out, in / 32, 16]`."""
  values = np.empty(codes.shape + (2,), np.float32)
  # The low half of a byte comes first.
  values[..., 0] = FP4[codes & 15]
  values[..., 1] = FP4[codes >> 4]
  exponents = scales.astype(np.int32) - BIAS
  np.ldexp(values, exponents[..., None, None], out=values)
  return values.reshape(codes.shape[:2] + (-1,)).swapaxes(1, 2)
