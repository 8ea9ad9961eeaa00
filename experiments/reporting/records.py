"""JSON lines: a self-describing record a line, written at once."""

import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from kvjax.strict_json import parse_object


def append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Appends a record to a file, whole, at once.

  A number that JSON does not know (NaN, infinity) is written as a string, and
  so is a key.

  Raises:
    TypeError: a value is not of JSON and no array; names its type.
    OSError: the file cannot be written, for a full disk say; names it.
  """
  text = json.dumps(_plain(record))
  known = json.loads(text, parse_constant=lambda name: str(float(name)))
  line = json.dumps(known, ensure_ascii=False) + '\n'
  # UTF-8 has no half of a surrogate pair: its backslash form is JSON's own.
  data = line.encode('utf-8', 'backslashreplace')
  with writing_to(path), path.open('ab') as file:
    file.write(data)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _plain(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(x) for x in value]
  if hasattr(value, 'tolist'):  # NumPy and JAX arrays and scalars
    return value.tolist()
  return value  # of another type, json names the type in its error


@contextlib.contextmanager
def writing_to(path: pathlib.Path) -> Iterator[None]:
  """Makes the OSError of a failed write name the file, in one sentence."""
  try:
    yield
  except OSError as error:
    raise OSError(
      f'{str(path)!r} cannot be written: {error.strerror}. Make room there, '
      'or name another place.'
    ) from None


def read(paths: Iterable[pathlib.Path]) -> list[dict[str, Any]]:
  """Returns all records of files, in order.

  Raises:
    ValueError: a line is no JSON object in UTF-8; names file and line.
  """
  records = []
  for path in paths:
    # Other ends of a line than this one may stand in the texts of a record.
    for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
      if line.strip():
        records.append(parse_object(line, f'{path}:{number}'))
  return records


def environment() -> dict[str, Any]:
  """Returns versions, device, processor, time and commit of this run."""
  import jax

  import kvjax

  device, count = jax.devices()[0], jax.process_count()
  return {
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'commit': commit(),
    'kvjax': kvjax.__version__,
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in ('jax', 'flax', 'numpy')},
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.device_count(),
    **({'process_count': count} if count > 1 else {}),
    'processor': processor(),
    'cores': os.cpu_count(),
  }


def commit() -> str | None:
  """Returns the commit of the working tree, with a `+` if it has changes."""
  git = ['git', 'describe', '--always', '--dirty=+', '--abbrev=10']
  room = pathlib.Path(__file__).parent
  try:
    described = subprocess.run(
      git, cwd=room, capture_output=True, text=True, timeout=10
    )
  except (OSError, subprocess.TimeoutExpired):  # there is no git, or it hangs
    return None
  return described.stdout.strip() or None


def processor() -> str:
  """Returns the processor's name as the system states it."""
  info = pathlib.Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else ''
  name = re.search(r'model name\s*: (.*)', text)
  return name[1] if name else platform.processor() or platform.machine()
