"""Configs of published models by name, shipped with the package.

Each `kvjax/models/published/NAME.json` is a config.json with the keys that a
`ModelConfig` depends on, and `_source`, the place where the keys were read.
`_note` says what is left out, if anything.
"""

import difflib
import importlib.resources
import json
from typing import Any

SUFFIX = '.json'


def published_names() -> tuple[str, ...]:
  """Returns the names that `kvjax.load_config` knows, sorted."""
  return tuple(sorted(file.name.removesuffix(SUFFIX) for file in _files()))


def published_values(name: str) -> dict[str, Any] | None:
  """Returns the keys and values of a published config.json; None if unknown.

  Args:
    name: of `published_names`, or an id such as 'openai/gpt-oss-20b'; case is
      free.
  """
  folded = name.lower()
  for file in _files():
    if file.name == folded + SUFFIX:
      return json.loads(file.read_text(encoding='utf-8'))
  if '/' not in name:
    return None
  for file in _files():
    values = json.loads(file.read_text(encoding='utf-8'))
    if values['_name_or_path'].lower() == folded:
      return values
  return None


def nearest_names(name: str) -> str:
  """Returns the published names most like `name`, for an error message."""
  names = published_names()
  folded = name.lower().rsplit('/', 1)[-1]
  near = difflib.get_close_matches(folded, names, n=4, cutoff=0.5)
  near += [x for x in names if folded and folded in x and x not in near]
  # The twenty names of one paper's table would hide all others.
  return ', '.join(near[:6] or [x for x in names if not x.startswith('cla-')])


def _files() -> list[Any]:
  home = importlib.resources.files('kvjax.models') / 'published'
  return [file for file in home.iterdir() if file.name.endswith(SUFFIX)]
