"""Codecs as loops in NumPy: numbers in, what is read of them out."""

import numpy as np


def affine(x: np.ndarray, bits: int, group: int) -> np.ndarray:
  """Returns `x [n, H]` after codes of groups with a scale and a zero."""
  found = np.empty_like(x)
  for row in range(len(x)):
    for start in range(0, x.shape[1], group):
      part = x[row, start : start + group]
      scale = np.float16((part.max() - part.min()) / (2**bits - 1))
      zero, scale = np.float32(np.float16(part.min())), np.float32(scale)
      codes = np.clip(np.rint((part - zero) / (scale or 1)), 0, 2**bits - 1)
      found[row, start : start + group] = codes * scale + zero
  return found


def symmetric(x: np.ndarray, bits: int, group: int) -> np.ndarray:
  """Returns `x [n, H]` after codes of groups with a scale alone."""
  found = np.empty_like(x)
  most = 2 ** (bits - 1) - 1
  for row in range(len(x)):
    for start in range(0, x.shape[1], group):
      part = x[row, start : start + group]
      scale = np.float32(np.float16(np.abs(part).max() / most))
      codes = np.clip(np.rint(part / (scale or 1)), -most - 1, most)
      found[row, start : start + group] = codes * scale
  return found


def lloyd_max(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Returns `x [n, H]` as the nearest levels, times the norm of a row."""
  norm = np.float16(np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  unit = norm / x.shape[1] ** 0.5
  distance = np.abs((x / unit)[..., None] - levels)
  return levels[distance.argmin(axis=-1)] * unit


def hadamard(size: int) -> np.ndarray:
  """Returns the matrix of signs `(-1) ** bits(i & j)`, made orthogonal."""
  signs = [
    [(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)
  ]
  return np.asarray(signs) / size**0.5
