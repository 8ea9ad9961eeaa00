"""JSON lines: a self-describing record a line, written at once."""

import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any


def append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Appends a record to a file, whole, at once.

  A number that JSON does not know (NaN, infinity) is written as a string.
  """
  line = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False)
  with path.open('a', encoding='utf-8') as file:
    file.write(line + '\n')


def read(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
  """Returns all records of files, in order.

  Raises:
    ValueError: a line is no JSON object; names file and line.
  """
  records = []
  for path in paths:
    for number, line in enumerate(path.read_text('utf-8').splitlines(), 1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(
          f'{path}:{number} is no JSON ({error.msg}). Give .jsonl files.'
        ) from None
      if not isinstance(record, dict):
        raise ValueError(f'{path}:{number} is no JSON object.')
      records.append(record)
  return records


def environment() -> dict[str, Any]:
  """Returns versions, device, processor, time and commit of this run."""
  import flax
  import jax
  import numpy as np

  import kvjax

  device = jax.devices()[0]
  return {
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'commit': commit(),
    'kvjax': kvjax.__version__,
    'python': platform.python_version(),
    'jax': jax.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    'processor': processor(),
    'cores': os.cpu_count(),
  }


def commit() -> str | None:
  """Returns the commit of the working tree, with a `+` if it has changes."""
  root = pathlib.Path(__file__).parents[2]
  try:
    described = subprocess.run(
      ['git', 'describe', '--always', '--dirty=+', '--abbrev=10'],
      cwd=root,
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return described.stdout.strip() or None


def processor() -> str:
  """Returns the processor's name as the system states it."""
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if hasattr(value, 'tolist'):  # NumPy and JAX arrays and scalars
    return _plain(value.tolist())
  if isinstance(value, float) and (value != value or value in _INFINITE):
    return str(value)
  return value


_INFINITE = (float('inf'), float('-inf'))
