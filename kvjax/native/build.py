"""Builds and finds the CPU kernel's shared library.

It imports the standard library alone: an installation runs it without JAX.

`python kvjax/native/build.py` (or `make kernels`) compiles `decode_cpu.cc`
for this very processor into the package, or where that is not writable into
the user's cache directory. A library is named by all that it depends on, so one
built from other sources, with other headers of jaxlib or for another processor
is not found, and never loaded. Nor is one that another user could have put
there. The headers declare the whole interface to XLA, so releases of jaxlib
with equal headers share a library.
"""

import hashlib
import os
import pathlib
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parent
SOURCE = PACKAGE / 'src' / 'decode_cpu.cc'
HEADERS = (
  'attend.h',
  'codes.h',
  'panels.h',
  'pool.h',
  'problem.h',
  'project.h',
  'project_blocks.h',
  'streams.h',
  'tiles.h',
)
INTERFACE = 'xla/ffi/api/*.h'  # below jaxlib's headers
FLAGS = ('-O3', '-march=native', '-std=c++17', '-fPIC', '-shared', '-w')


class BuildError(RuntimeError):
  """The kernel cannot be compiled here; the message says why."""


def build(directory: pathlib.Path | None = None) -> pathlib.Path:
  """Compiles the kernel and returns the library's path.

  Args:
    directory: where to put it; None for the package, or the cache directory.

  Raises:
    BuildError: no compiler, no headers of jaxlib, nowhere to write, or an error
      of the compiler.
  """
  return compiled(SOURCE, (directory or _destination()) / _name())


def compiled(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """Compiles a source as the kernel is, and returns the library's path.

  Args:
    source: of C++, which finds the kernel's headers and jaxlib's.
    target: the library's path.

  Raises:
    BuildError: as `build`.
  """
  headers = _headers()
  if headers is None:
    raise BuildError('no headers: install jaxlib in this environment first.')
  folders = f'-I{SOURCE.parent}', f'-I{headers}'
  command = [_compiler(), *FLAGS, *folders, str(source), '-o']
  target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
  # Never a half-written library under the final name.
  scratch = target.with_suffix(f'.{os.getpid()}')
  command.append(str(scratch))
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise BuildError(f'{" ".join(command)}: {done.stderr.strip()[-2000:]}')
  scratch.chmod(0o755)  # whatever the umask: `find` takes no other
  os.replace(scratch, target)
  return target


def find() -> pathlib.Path | None:
  """Returns the library built for this processor and jaxlib; None for none."""
  return next((library for library, risk in _libraries() if not risk), None)


def why_none() -> str:
  """Returns why `find` returns None, and what to do about it."""
  for library, risk in _libraries():
    return f'{library} is not loaded: {risk}'
  command = shlex.join([sys.executable, str(PACKAGE / 'build.py')])
  return f'the kernel is not built. With a C++ compiler, run: {command}'


def programs_folder() -> pathlib.Path | None:
  """Returns where compiled programs of this processor may be kept.

  None where there is no home, or where another user could put a program:
  programs that are read back run.
  """
  cache = user_cache()
  if cache is None:
    return None
  digest = hashlib.sha256('\n'.join(_processor()).encode()).hexdigest()
  folder = cache / f'programs-{digest[:16]}'
  try:
    make_folder(folder)
  except OSError:
    return None
  return None if _risk(folder) else folder


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder of `user_cache`; others may not write to it.

  Whatever the umask is: `_risk` refuses what they may write to.
  """
  for place in (folder.parents[1], folder.parent, folder):
    place.mkdir(mode=0o755, parents=True, exist_ok=True)


def _libraries() -> Iterator[tuple[pathlib.Path, str]]:
  """Yields each library for this processor and jaxlib, and its `_risk`."""
  name = _name()
  for place in (PACKAGE, user_cache()):
    try:
      if place is not None and (place / name).exists():
        yield place / name, _risk(place / name)
    except OSError:  # a folder that this user may not read holds no library
      continue


def _risk(library: pathlib.Path) -> str:
  """Returns how another user could have put a library there; '' if none could.

  Looks at the library and every folder above it, since who may rename a folder
  may put another in its place. Who may change this very file is trusted in the
  package: such a user needs no library, and a checkout may belong to a group.
  """
  trusted, writers = {0, os.geteuid()}, stat.S_IWGRP | stat.S_IWOTH
  # A link on the way is in a folder, and leads to another.
  places = [library, *library.parents, *library.resolve().parents]
  if library.parent == PACKAGE:
    code = os.stat(__file__)
    trusted.add(code.st_uid)
    writers &= ~code.st_mode
    places = [library, PACKAGE]
  for place in filter(pathlib.Path.exists, places):
    facts = place.stat()
    if facts.st_uid not in trusted:
      return (
        f'{place} belongs to user {facts.st_uid}, and this process to user '
        f'{os.geteuid()}. Remove the library, or set XDG_CACHE_HOME to a '
        'folder of your own.'
      )
    # In a sticky folder, as /tmp is, nobody renames what another owns.
    is_sticky = place.is_dir() and facts.st_mode & stat.S_ISVTX
    if facts.st_mode & writers and not is_sticky:
      return (
        f'other users may write to {place}. Remove the library, '
        f'`chmod go-w {place}` (or set XDG_CACHE_HOME to a folder that only '
        'you can change), and build it anew.'
      )
  return ''


def user_cache() -> pathlib.Path | None:
  """Returns kvjax's folder in the user's cache; None where there is no home.

  A relative folder would depend on where a program is started, so it counts as
  none (XDG Base Directory Specification).
  """
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  if not home.is_absolute():
    try:
      home = pathlib.Path.home() / '.cache'
    except RuntimeError:  # no HOME, and no such user in the password file
      return None
  return home / 'kvjax' if home.is_absolute() else None


def _destination() -> pathlib.Path:
  """Returns the folder to build into: the package's, where it is writable."""
  if os.access(PACKAGE, os.W_OK):
    return PACKAGE
  cache = user_cache()
  if cache is None:
    raise BuildError(
      f'{PACKAGE} cannot be written and there is no home directory: '
      'set XDG_CACHE_HOME to the whole path of a folder that can be written.'
    )
  if risk := _risk(cache / _name()):
    raise BuildError(risk)
  return cache


def _name() -> str:
  files = [SOURCE, *(SOURCE.with_name(name) for name in HEADERS)]
  headers = _headers()
  files += sorted(headers.glob(INTERFACE)) if headers else []
  sources = (file.read_text() for file in files)
  facts = (*sources, *FLAGS, *_processor())
  digest = hashlib.sha256('\n'.join(facts).encode()).hexdigest()
  return f'decode_cpu-{digest[:16]}.so'


def _processor() -> tuple[str, ...]:
  """Returns what `-march=native` depends on."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  keys = ('flags', 'Features', 'model name')
  facts = sorted({line for line in lines if line.startswith(keys)})
  facts = facts or [platform.processor()]
  return platform.system(), platform.machine(), *facts


def _compiler() -> str:
  for name in (os.environ.get('CXX'), 'c++', 'g++', 'clang++'):
    if name and shutil.which(name):
      return name
  raise BuildError('no C++ compiler: install one, or set CXX to its path.')


def _headers() -> pathlib.Path | None:
  """Returns the folder of jaxlib's headers; None where there is none.

  An isolated build knows the environment it builds for by `purelib` alone.
  That environment's jaxlib comes first, for it is the one that loads the
  library.
  """
  for root in [sysconfig.get_path('purelib'), *sys.path]:
    headers = pathlib.Path(root) / 'jaxlib' / 'include'
    if headers.is_dir():
      return headers
  return None


if __name__ == '__main__':
  try:
    print(find() or build())
  except BuildError as error:
    print(f'kvjax runs without its CPU kernel: {error}')
