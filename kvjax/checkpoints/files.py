"""Files: those of others are checked, and new ones written whole or not."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import safetensors


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


def target_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns where to write, links followed.

  Raises:
    FileNotFoundError: the directory to write in is not there.
  """
  target = pathlib.Path(os.path.realpath(local_path(path)))
  if not target.parent.is_dir():
    raise FileNotFoundError(f'{target.parent} is no directory: make it first.')
  return target


@contextlib.contextmanager
def new_version(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write a file or directory that becomes `path` at the end.

  After an error, what was at `path` is there as before.

  Raises:
    OSError: it cannot be written, for a full disk say.
  """
  # A name for each call: several threads may write one path.
  scratch = pathlib.Path(tempfile.mkdtemp('.part', '.kvjax-', path.parent))
  part = scratch / 'new'  # with the permissions of what is made by hand
  try:
    yield part
    publish(part, path)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path} cannot be written: {error}.') from None
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def publish(part: pathlib.Path, path: pathlib.Path) -> None:
  """Gives a file or directory that was written its name."""
  for file in (part, *part.rglob('*')):
    if file.is_file():  # else a crash could leave an empty file
      with file.open('rb') as opened:
        os.fsync(opened.fileno())
  if path.is_dir():
    _swap(part, path)
  else:
    os.replace(part, path)


def _swap(part: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a directory to `path`, and the one that is there away."""
  old = tempfile.mkdtemp('.old', '.kvjax-', path.parent)
  os.rename(path, old)  # an empty directory may be replaced
  try:
    os.rename(part, path)
  except OSError:
    os.rename(old, path)
    raise
  shutil.rmtree(old, ignore_errors=True)
