"""Files of others: that they are files, and what is in them."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path; ValueError for what names no file."""
  text = os.fspath(path) if isinstance(path, os.PathLike) else path
  if not isinstance(text, str) or '\0' in text:
    raise ValueError(
      f'path={path!r} must be a text or a pathlib.Path, without a NUL.'
    )
  return pathlib.Path(text)


def is_present(file: pathlib.Path) -> bool:
  """Returns whether a file is there; raises as `check_regular`."""
  check_regular(file)
  return file.is_file()


def check_regular(file: pathlib.Path) -> None:
  """Raises ValueError for a folder, a pipe or a link to nothing.

  Who reads a pipe waits for its writer.
  """
  if os.path.lexists(file) and not file.is_file():
    raise ValueError(
      f'{file} is there and no regular file: replace or remove it.'
    )


def read_text(file: pathlib.Path) -> str:
  """Returns the text of a file; ValueError where it is no UTF-8."""
  try:
    return file.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} is no UTF-8: {error}.') from None


@contextlib.contextmanager
def errors_name(source: pathlib.Path | str) -> Iterator[None]:
  """Puts a file, or a part of one, before the message of every ValueError."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None
