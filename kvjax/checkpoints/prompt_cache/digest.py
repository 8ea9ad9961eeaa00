"""A digest of a saved cache: one changed bit of the file gives another digest.

It guards against damage, not against forgery: who edits a file can compute the
digest anew.
"""

import hashlib
import pathlib

DIGEST = 'kvjax_sha256'  # the key in the metadata
UNSIGNED = '0' * 64  # stands where the digest will be
BLOCK = 1 << 20  # bytes that are read at once


def sign(path: pathlib.Path) -> None:
  """Writes the digest of a file into its header, where `UNSIGNED` is."""
  value = digest(path, UNSIGNED)
  with path.open('r+b') as file:
    file.seek(8 + _header(path).index(_entry(UNSIGNED)) + len(_entry('')) - 1)
    file.write(value.encode())


def digest(path: pathlib.Path, written: str) -> str:
  """Returns the SHA-256 of a safetensors file, in hexadecimal.

  Args:
    path: of the file.
    written: the digest in its header, which counts as `UNSIGNED`.
  """
  header = _header(path)
  state = hashlib.sha256(len(header).to_bytes(8, 'little'))
  state.update(header.replace(_entry(written), _entry(UNSIGNED), 1))
  with path.open('rb') as file:
    file.seek(8 + len(header))
    while block := file.read(BLOCK):
      state.update(block)
  return state.hexdigest()


def _header(path: pathlib.Path) -> bytes:
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    return file.read(length)


def _entry(value: str) -> bytes:
  return f'"{DIGEST}":"{value}"'.encode()
