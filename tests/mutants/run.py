"""Applies every fault of the table to a copy of the package: all must die.

  python -m tests.mutants.run [--list] [--only NAME ...]

A fault is one line. For each, the tests most likely to notice run on a copy
that has it, two faults at a time; a fault that no test notices is alive, and
the exit status 1. The same tests first pass on a copy without a fault. The
kernel is the block loop, whose lines can be edited: a copy has no compiled
library, unless its tests build one.
"""

import concurrent.futures
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from absl import app, flags

from tests.mutants.fault import Mutant
from tests.mutants.table import MUTANTS

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = 'kvjax', 'experiments', 'configs', 'docs', 'tests'
PARTS = (*FOLDERS, 'pyproject.toml', 'README.md')

LIST = flags.DEFINE_bool(
  'list', False, 'Print docs/dev/mutants.md, run nothing.'
)
ONLY = flags.DEFINE_multi_string('only', [], 'Names of faults to apply.')
PROCESSES = flags.DEFINE_integer('processes', 2, 'Faults tried at a time.')
TIMEOUT = flags.DEFINE_integer('timeout', 600, 'Seconds for one fault.')
VERDICTS = {0: 'ALIVE', 1: 'dead'}  # by pytest's exit status


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown argument {argv[1]!r}; use --only NAME.')
  mutants = choose(ONLY.value)
  if LIST.value:
    print(page(mutants), end='')
    return
  start = time.time()
  with tempfile.TemporaryDirectory(prefix='mutants-') as scratch:
    verdicts = list(try_all(mutants, pathlib.Path(scratch)))
  alive = [name for name, verdict in verdicts if verdict != 'dead']
  print(
    f'{len(mutants) - len(alive)} of {len(mutants)} faults dead, '
    f'{time.time() - start:.0f} s.'
  )
  if alive:
    print('Not dead:', ', '.join(alive))
    sys.exit(1)


def page(mutants: Sequence[Mutant]) -> str:
  """Returns docs/dev/mutants.md."""
  rows = '\n'.join(mutant.row for mutant in mutants)
  return (
    '# Faults that the suite must notice\n\n'
    'Each row is one edit of one file, made by `make mutants` on a copy; the '
    'tests named in `tests/mutants/` must fail.\n'
    'This page is printed by `python -m tests.mutants.run --list`.\n\n'
    f'| fault | file | text | becomes |\n| --- | --- | --- | --- |\n{rows}\n'
  )


def choose(names: Sequence[str]) -> list[Mutant]:
  """Returns the faults of those names; all for none."""
  unknown = set(names) - {mutant.name for mutant in MUTANTS}
  if unknown:
    raise app.UsageError(f'Unknown faults: {sorted(unknown)}; see --list.')
  return [m for m in MUTANTS if not names or m.name in names]


def try_all(
  mutants: Sequence[Mutant], scratch: pathlib.Path
) -> Iterator[tuple[str, str]]:
  """Yields and prints the verdict on each fault, in order."""
  trees: queue.SimpleQueue = queue.SimpleQueue()
  for i in range(PROCESSES.value):
    trees.put(copy(scratch / f'tree_{i}'))

  def attempt(mutant: Mutant | None, tests: Sequence[str]):
    tree, start = trees.get(), time.time()
    try:
      return judge(mutant, tests, tree), time.time() - start
    finally:
      trees.put(tree)

  with concurrent.futures.ThreadPoolExecutor(PROCESSES.value) as pool:
    files = by_file(mutants)
    sound = pool.map(lambda tests: attempt(None, tests), files.values())
    for file, (verdict, seconds) in zip(files, sound, strict=True):
      report(f'({file})', 'passes' if verdict == 'ALIVE' else verdict, seconds)
      if verdict != 'ALIVE':
        pool.shutdown(cancel_futures=True)
        raise SystemExit(f'{file} does not pass on the package as it is.')
    found = pool.map(lambda m: attempt(m, [m.test]), mutants)
    for mutant, (verdict, seconds) in zip(mutants, found, strict=True):
      report(mutant.name, verdict, seconds)
      yield mutant.name, verdict


def by_file(mutants: Sequence[Mutant]) -> dict[str, list[str]]:
  """Returns the tests that faults name, each once, by file."""
  files: dict[str, list[str]] = {}
  for test in dict.fromkeys(mutant.test for mutant in mutants):
    files.setdefault(test.partition('::')[0], []).append(test)
  return files


def report(what: str, verdict: str, seconds: float) -> None:
  """Prints one line of the table."""
  print(f'{what:44} {verdict:8} {seconds:4.0f} s', flush=True)


def copy(tree: pathlib.Path) -> pathlib.Path:
  """Returns a copy of the package and its tests."""
  ignore = shutil.ignore_patterns('__pycache__', '*.so')
  tree.mkdir()
  for part in PARTS:
    if (ROOT / part).is_dir():
      shutil.copytree(ROOT / part, tree / part, ignore=ignore)
    else:
      shutil.copy(ROOT / part, tree / part)
  return tree


def judge(
  mutant: Mutant | None, tests: Sequence[str], tree: pathlib.Path
) -> str:
  """Returns what the tests say of a tree with that fault (None for none)."""
  for library in (tree / 'kvjax' / 'native').glob('*.so'):
    library.unlink()  # that the tests of an earlier fault built
  whole = None
  if mutant is not None:
    whole = (tree / mutant.path).read_text()
    (tree / mutant.path).write_text(mutant.apply(whole))
  command = [sys.executable, '-m', 'pytest', '-x', '-q', '--no-header']
  command += ['-p', 'no:cacheprovider', *tests]
  try:
    done = subprocess.run(
      command,
      cwd=tree,
      env=environment(tree),
      capture_output=True,
      timeout=TIMEOUT.value,
    )
  except subprocess.TimeoutExpired:
    return 'timeout'
  finally:
    if mutant is not None and whole is not None:
      (tree / mutant.path).write_text(whole)
  # Anything but a failed test (a node that is not there) proves nothing.
  return VERDICTS.get(done.returncode, f'error {done.returncode}')


def environment(tree: pathlib.Path) -> dict[str, str]:
  """Returns variables under which a program compiled once is compiled once."""
  return os.environ | {
    'PYTHONPATH': str(tree),
    'PYTHONDONTWRITEBYTECODE': '1',
    # An empty folder: a library built elsewhere would be found in the user's.
    'XDG_CACHE_HOME': str(tree / 'cache'),
    'JAX_COMPILATION_CACHE_DIR': str(tree.parent / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


if __name__ == '__main__':
  app.run(main)
