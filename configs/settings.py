"""The settings of a config: what each changes of the default."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def apply(
  config: ConfigDict, settings: Mapping[str, Mapping[str, Any]], name: str
) -> ConfigDict:
  """Returns the config with the dotted fields of a setting changed in it.

  Raises:
    ValueError: there is no setting of that name.
  """
  if name not in settings:
    raise ValueError(
      f'setting={name!r} is unknown; known: {", ".join(settings)}.'
    )
  config.update_from_flattened_dict(settings[name])
  return config
