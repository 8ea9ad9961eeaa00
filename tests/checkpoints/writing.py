"""A second, tiny writer of safetensors: tests alter checkpoints with it."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints'
DTYPES = {
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'U8': np.uint8,
  'I64': np.int64,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a safetensors file."""
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for name, x in tensors.items():
    header[name] = {
      'dtype': NAMES[x.dtype],
      'shape': list(x.shape),
      'data_offsets': [offset, offset + x.nbytes],
    }
    offset += x.nbytes
  text = json.dumps(header).encode()
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for x in tensors.values():
      file.write(np.ascontiguousarray(x).tobytes())


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a safetensors file."""
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:start])
  header.pop('__metadata__', None)
  return {
    name: np.frombuffer(
      data[start + e['data_offsets'][0] : start + e['data_offsets'][1]],
      DTYPES[e['dtype']],
    ).reshape(e['shape'])
    for name, e in header.items()
  }


def altered(
  folder: pathlib.Path, name: str, config: Any = None, tensors: Any = None
) -> pathlib.Path:
  """Copies a fixture, with functions applied to its config and tensors."""
  path = folder / name
  shutil.copytree(GOLDEN / name, path)
  if config is not None:
    file = path / 'config.json'
    file.write_text(json.dumps(config(json.loads(file.read_text()))))
  if tensors is not None:
    file = path / 'model.safetensors'
    write(file, tensors(read(file)))
  return path
