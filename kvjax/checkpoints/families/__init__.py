"""One file a published family; `FAMILIES` is by `model_type`.

A file of this folder is a family: its name is the `model_type` and its `FAMILY`
the table. One that serves other types has `FAMILIES`, by type.
"""

import importlib
import pkgutil

from kvjax.checkpoints.family import Family


def _families() -> dict[str, Family]:
  """Returns the families of all files here, by `model_type`."""
  families: dict[str, Family] = {}
  for file in pkgutil.iter_modules(__path__):
    module = importlib.import_module(f'{__name__}.{file.name}')
    families |= getattr(module, 'FAMILIES', None) or {file.name: module.FAMILY}
  return dict(sorted(families.items()))


FAMILIES = _families()
