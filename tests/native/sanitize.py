"""`make sanitize`: the native library under the sanitizers of g++.

Random calls (`sanitize.cc`) under the address and undefined-behaviour
sanitizers, the same under the thread sanitizer, and the library's tests in
Python under the first two. Python and XLA are not built for the thread
sanitizer, so the tests in Python do not run under it.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from kvjax.native import build

DRIVER = pathlib.Path(__file__).with_suffix('.cc')
MEMORY = ('-O1', '-g1', '-fsanitize=address,undefined')
THREADS = ('-O1', '-g1', '-fsanitize=thread')
# Compiles in a third of the time. References to misaligned temporaries, which
# other levels do not make, are what `undefined` would report.
QUICK = ('-O0', '-fsanitize=address,signed-integer-overflow')
CALLS = {MEMORY: 6000, THREADS: 2000, QUICK: 150}
TESTS = (
  'tests/native',
  '--deselect=tests/native/test_sanitize.py',
  'tests/kernels/test_kernels.py',
  '-kffi or native',
)
# Preloaded, as an instrumented library in a plain program needs. With no
# libstdc++ before it, libasan would not find the function that throws.
PRELOADED = ('libasan.so', 'libubsan.so', 'libstdc++.so')


class MissingToolError(RuntimeError):
  """A compiler or a sanitizer is not installed; the message says which."""


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    try:
      for flags in (MEMORY, THREADS):
        print(flags[-1], run_driver(pathlib.Path(folder), flags), flush=True)
      run_python_tests(pathlib.Path(folder))
    except MissingToolError as error:
      sys.exit(str(error))


def run_driver(folder: pathlib.Path, flags: tuple[str, ...]) -> str:
  """Builds the driver into a folder and returns what its calls printed.

  Raises:
    MissingToolError: there is no compiler, or it lacks the sanitizer.
    RuntimeError: the driver found a fault; its report is the message.
  """
  program = folder / 'driver'
  _compile(DRIVER, program, (*flags, '-pthread'))
  done = subprocess.run(
    [program, '0', str(CALLS[flags])], capture_output=True, text=True
  )
  if done.returncode:
    raise RuntimeError(f'{flags[-1]}:\n{done.stdout}{done.stderr}')
  return done.stdout.strip()


def run_python_tests(folder: pathlib.Path) -> None:
  """Runs the tests of the library in an interpreter with the sanitizers."""
  library = folder / build._name()
  _compile(build.SOURCE, library, (*MEMORY, '-fPIC', '-shared'))
  found = [_output('-print-file-name=' + name) for name in PRELOADED]
  environment = {
    **os.environ,
    'LD_PRELOAD': ':'.join(found),
    # Python and XLA free little at their end.
    'ASAN_OPTIONS': 'detect_leaks=0',
  }
  code = 'import sys; from tests.native import sanitize; '
  command = [sys.executable, '-c', code + 'sanitize.test_library(sys.argv[1])']
  done = subprocess.run([*command, str(folder)], env=environment)
  if done.returncode:
    sys.exit(done.returncode)


def test_library(folder: str) -> None:
  """Runs the tests with the library of a folder, and exits."""
  build.PACKAGE = pathlib.Path(folder)
  sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *TESTS]))


def _compile(
  source: pathlib.Path, target: pathlib.Path, flags: tuple[str, ...]
) -> None:
  folders = f'-I{build.SOURCE.parent}', f'-I{build._headers()}'
  flags = '-march=native', '-std=c++17', '-w', *flags, *folders
  flags = '-fno-sanitize-recover=all', *flags
  try:
    _output(*flags, str(source), '-o', str(target))
  except subprocess.CalledProcessError as error:
    for line in error.stderr.splitlines():
      if 'cannot find' in line or 'unsupported option' in line:
        raise MissingToolError(f'No sanitizer: {line}') from None
    raise RuntimeError(error.stderr) from None


def _output(*arguments: str) -> str:
  try:
    command = [build._compiler(), *arguments]
  except build.BuildError as error:
    raise MissingToolError(str(error)) from None
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return done.stdout.strip()


if __name__ == '__main__':
  main()
