"""A second, tiny writer of GGUF: tests alter files with it."""

import math
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kvjax.checkpoints.gguf.blocks import open_tensors
from kvjax.checkpoints.gguf.header import read_header

ALIGNMENT = 32
KINDS = {
  np.dtype(dtype): kind
  for kind, dtype in enumerate(('u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'f4'))
}
PLAIN = {np.dtype('f4'): 0, np.dtype('f2'): 1}


class Raw(NamedTuple):
  """A tensor as it is in a file: shape, number of its type, bytes."""

  shape: tuple[int, ...]
  kind: int
  data: bytes


def raw(array: np.ndarray) -> Raw:
  return Raw(array.shape, PLAIN[array.dtype], array.tobytes())


def write(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  tensors: Mapping[str, Raw] | None = None,
) -> pathlib.Path:
  tensors = tensors or {}
  head = b'GGUF' + struct.pack('<IQQ', 3, len(tensors), len(metadata))
  for key, value in metadata.items():
    head += _text(key) + _value(value)
  body = b''
  for name, (shape, kind, data) in tensors.items():
    head += _text(name) + struct.pack('<I', len(shape))
    head += struct.pack(f'<{len(shape)}Q', *shape[::-1])
    head += struct.pack('<IQ', kind, len(body))
    body += _padded(data)
  path.write_bytes(_padded(head) + body)
  return path


def altered(
  path: pathlib.Path,
  source: pathlib.Path,
  metadata: Mapping[str, Any] | None = None,
  tensors: Callable[[dict[str, Raw]], Mapping[str, Raw]] = lambda x: x,
) -> pathlib.Path:
  """Writes a file anew, with changed metadata (None removes) and tensors."""
  header = read_header(source)
  data = source.read_bytes()
  found = {
    name: Raw(x.shape, header.entries[name].kind, data[x.offset :][: x.size])
    for name, x in open_tensors(header).items()
  }
  values = dict(header.metadata) | dict(metadata or {})
  values = {key: x for key, x in values.items() if x is not None}
  return write(path, values, tensors(found))


def _padded(data: bytes) -> bytes:
  return data + bytes(-len(data) % ALIGNMENT)


def _text(text: str) -> bytes:
  return struct.pack('<Q', len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
  if isinstance(value, str):
    return struct.pack('<I', 8) + _text(value)
  if isinstance(value, bool):
    return struct.pack('<I?', 7, value)
  if isinstance(value, float):
    return struct.pack('<If', 6, value)
  if isinstance(value, int):
    return struct.pack('<Iq', 11, value)
  if isinstance(value, np.ndarray):
    kind, count = KINDS[value.dtype], math.prod(value.shape)
    return struct.pack('<IIQ', 9, kind, count) + value.tobytes()
  head = struct.pack('<IIQ', 9, 8, len(value))
  return head + b''.join(map(_text, value))
