"""Files of a checkpoint that may be absent, and what is in them."""

import os
import pathlib


def is_present(file: pathlib.Path) -> bool:
  """Returns whether a file is there.

  Raises:
    ValueError: a folder, a pipe or a link to nothing has its name.
  """
  if os.path.lexists(file) and not file.is_file():
    raise ValueError(
      f'{file} is there and no regular file: replace or remove it.'
    )
  return file.is_file()


def read_text(file: pathlib.Path) -> str:
  """Returns the text of a file; ValueError where it is no UTF-8."""
  try:
    return file.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} is no UTF-8: {error}.') from None
