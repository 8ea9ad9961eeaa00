"""What a model's name stands for: a path, in the end.

An existing path comes first, then the names of `BUILT`, then an id of the
Hugging Face Hub, `owner/name` or `owner/name@revision`. Before the Hub,
`load_config` also tries the configs that ship with kvjax. A `pathlib.Path` is a
path and no name.
"""

import importlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from kvjax.checkpoints.files import local_path

# Names of models that a module makes into a directory, at their first use. The
# module may stand on a higher floor, since it writes a tokenizer too.
BUILT = {'smollm2-135m': 'kvjax.text.smollm2'}
CONFIG = 'config.json'
# Patterns of files that are fetched next to it.
TOKENIZER_FILES = (
  *('tokenizer*', 'special_tokens_map.json', 'chat_template.*'),
  *('vocab.*', 'merges.txt', 'added_tokens.json', 'generation_config.json'),
)
MODEL_FILES = ('*.safetensors', '*.safetensors.index.json')
# Parts of other models, and a second copy of the weights (Mistral).
OTHER_FILES = ['*/*', 'consolidated*']
FILE_ENDINGS = ('.gguf', '.json', '.safetensors')  # of no model of the Hub
HUB_ID = re.compile(r'\w[\w.-]*/\w[\w.-]*(@\S+)?', re.ASCII)
# What a name can be, for an error message.
POSSIBLE_NAMES = (
  f'A name is an existing path, {", ".join(map(repr, BUILT))}, a config that '
  "ships with kvjax (load_config and plans: 'llama-3-8b'), or a Hub id "
  "'owner/name'."
)


def find_model(
  name: str | pathlib.Path, files: Sequence[str] = MODEL_FILES
) -> pathlib.Path:
  """Returns the path that a name stands for, fetched where need be.

  Args:
    name: an existing path, a name of `BUILT`, or an id of the Hub.
    files: patterns of the files that are fetched from the Hub, config.json
      apart.

  Raises:
    FileNotFoundError: it is none of these, or cannot be fetched; the message
      says what a name can be.
    ValueError: it is no text and no path.
  """
  path = local_path(name)
  if not isinstance(name, str) or os.path.lexists(path):
    return path
  if name in BUILT:
    return importlib.import_module(BUILT[name]).directory()
  if HUB_ID.fullmatch(name) and path.suffix not in FILE_ENDINGS:
    return _fetch(name, files)
  raise FileNotFoundError(f'There is no model {name!r}. {POSSIBLE_NAMES}')


def _fetch(name: str, files: Sequence[str]) -> pathlib.Path:
  """Returns the directory of a model of the Hub, in that library's cache."""
  repository, _, revision = name.partition('@')
  try:
    hub: Any = importlib.import_module('huggingface_hub')
    path = hub.snapshot_download(
      repository,
      revision=revision or None,
      allow_patterns=[CONFIG, *files],
      ignore_patterns=OTHER_FILES,
    )
  except ImportError:
    reason = "it needs the library huggingface_hub: pip install 'kvjax[hub]'."
  except (OSError, ValueError) as error:
    # Its errors are of these two classes, and say more on later lines.
    reason = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
  else:
    if (pathlib.Path(path) / CONFIG).is_file():
      return pathlib.Path(path)
    reason = f'the Hub has no {CONFIG} in it.'
  raise FileNotFoundError(
    f'There is no path {name!r}, and as a Hub id it cannot be fetched: '
    f'{reason} {POSSIBLE_NAMES}'
  )
