"""Measures the structure of the repository and prints it as a table.

  python -m tests.structure [--root=DIRECTORY] [--names]

Sources are parsed, never imported; two figures come from other programs: the
modules that `import kvjax` loads, and what `ruff format` would change.
`tests/test_structure.py` holds most of the figures to a limit.
"""

import ast
import collections
import dataclasses
import itertools
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import app, flags

from tests import imports, sources

ROOT = pathlib.Path(__file__).parents[1]
MANY_PARAMETERS = 8
DIALECT = (
  'beside',
  'asked',
  'held',
  'lie',
  'lies',
  'told',
  'meanwhile',
  'likewise',
  'so many',
  'of its own',
  'lone',
  'whoever',
  'but for',
)
# From the public door to the array that is written; each function calls the
# next one.
DECODE_PATH = (
  'kvjax.decoding.steps.decode_step',
  'kvjax.decoding.steps._decode_step',
  'kvjax.decoding.advance.advance',
  'kvjax.decoding.advance._advance_at_once',
  'kvjax.decoding.advance._run_layers',
  'kvjax.decoding.advance._LayerPrograms.run_own',
  'kvjax.decoding.layer.attend_through_cache',
  'kvjax.decoding.layer.store_tokens',
  'kvjax.caches.kind.Kind.write',
)


_ROOT = flags.DEFINE_string('root', str(ROOT), 'The repository to measure.')
_NAMES = flags.DEFINE_bool('names', False, 'Print what was counted as well.')


@dataclasses.dataclass(frozen=True)
class Figure:
  """One row of the table, and the names of what was counted."""

  title: str
  number: int | float
  names: tuple[str, ...] = ()


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown argument {argv[1]!r}.')
  root = pathlib.Path(_ROOT.value)
  for figure in figures(root):
    number = figure.number
    shown = f'{number:,}' if isinstance(number, int) else f'{number:.3f}'
    print(f'{figure.title:62} {shown:>8}')
    if _NAMES.value:
      for name in figure.names:
        print(f'    {name}')


def figures(root: pathlib.Path) -> Iterator[Figure]:
  """Yields every row of the table, for a checkout at `root`."""
  modules = sources.read_modules(root, sources.PACKAGE)
  yield from _size_figures(root, modules)
  unreached = imports.unreachable_lines(modules)
  yield Figure(
    'code lines that `import kvjax` cannot reach',
    sum(unreached.values()),
    _numbered(unreached),
  )
  loaded = loaded_modules(root)
  yield Figure('modules that `import kvjax` loads', len(loaded), tuple(loaded))
  free = ', '.join(imports.FREE_OF_CACHES)
  lists = {
    'imports between rooms that run back up': imports.upward_imports(modules),
    'circles of imports': imports.circles(modules),
    f'imports of caches in {free}': imports.cache_imports(modules),
    'files that `ruff format` would change': unformatted_files(root),
    f'functions of {MANY_PARAMETERS} parameters and more': long_signatures(
      modules
    ),
    'calls that spread a tuple packed for them': packed_stars(modules),
    'class names used twice and more': repeated_class_names(modules),
  }
  for title, names in lists.items():
    yield Figure(title, len(names), tuple(names))
  words = dialect_words(root)
  yield Figure('words of the dialect', words.total(), _numbered(words))
  order = reading_order(root)
  yield Figure(
    'lines of the reading order', sum(order.values()), _numbered(order)
  )
  path = path_lengths(modules)
  yield Figure(
    'lines from decode_step to Kind.write', sum(path.values()), _numbered(path)
  )
  broken = broken_links(modules)
  yield Figure('steps of that path without a call', len(broken), tuple(broken))


def _size_figures(
  root: pathlib.Path, modules: Mapping[str, sources.Module]
) -> Iterator[Figure]:
  code: collections.Counter[str] = collections.Counter()
  comments: collections.Counter[str] = collections.Counter()
  for module in modules.values():
    code[module.room] += sources.code_lines(module)
    comments[module.room] += sources.comment_lines(module)
  yield Figure(f'code lines of {sources.PACKAGE}/', code.total())
  for room, count in code.most_common():
    yield Figure(f'  {room}', count)
  studies = sources.read_modules(root, 'experiments').values()
  yield Figure(
    'code lines of experiments/', sum(map(sources.code_lines, studies))
  )
  yield Figure('comment lines a code line', comments.total() / code.total())
  for room, count in code.most_common():
    yield Figure(f'  {room}', comments[room] / max(count, 1))


def _numbered(counts: Mapping[str, int]) -> tuple[str, ...]:
  return tuple(f'{count:6,} {name}' for name, count in counts.items())


def loaded_modules(root: pathlib.Path) -> list[str]:
  """Returns the modules of the package that `import kvjax` loads."""
  code = f'import sys, {sources.PACKAGE}; print(*sys.modules)'
  names = _output([sys.executable, '-c', code], root).split()
  return sorted(name for name in names if name.split('.')[0] == sources.PACKAGE)


def long_signatures(modules: Mapping[str, sources.Module]) -> list[str]:
  """Returns functions with too many parameters, each with their number.

  The receiver of a method does not count, nor do parameters of a public
  function that a caller must name.
  """
  return [
    f'{module.path}:{node.lineno}: {name} {count}'
    for module in modules.values()
    for name, node in sources.functions(module)
    if (count := _parameters(name, node)) >= MANY_PARAMETERS
  ]


def _parameters(name: str, node: sources.Function) -> int:
  arguments = node.args
  positional = [*arguments.posonlyargs, *arguments.args]
  if positional and positional[0].arg in ('self', 'cls'):
    positional = positional[1:]
  count = len(positional) + bool(arguments.vararg) + bool(arguments.kwarg)
  is_public = not any(part.startswith('_') for part in name.split('.'))
  return count if is_public else count + len(arguments.kwonlyargs)


def packed_stars(modules: Mapping[str, sources.Module]) -> list[str]:
  """Returns calls `f(*x)` in a function that assigns a tuple to `x`."""
  places = {
    (module.path, node.lineno, node.value.id)
    for module in modules.values()
    for _, function in sources.functions(module)
    for node in _starred_names(function)
    if node.value.id in _tuple_names(function)
  }
  return [f'{path}:{line}: *{name}' for path, line, name in sorted(places)]


def _starred_names(function: sources.Function) -> Iterator[ast.Starred]:
  for call in ast.walk(function):
    if isinstance(call, ast.Call):
      for node in call.args:
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Name):
          yield node


def _tuple_names(function: sources.Function) -> set[str]:
  return {
    target.id
    for node in ast.walk(function)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    for target in node.targets
    if isinstance(target, ast.Name)
  }


def repeated_class_names(modules: Mapping[str, sources.Module]) -> list[str]:
  """Returns names that two classes of the package share, and where."""
  places = collections.defaultdict(list)
  for module in modules.values():
    for node in ast.walk(module.tree):
      if isinstance(node, ast.ClassDef):
        places[node.name].append(f'{module.path}:{node.lineno}')
  return [
    f'{name}: {", ".join(where)}'
    for name, where in sorted(places.items())
    if len(where) > 1
  ]


# Words, format and what a newcomer reads.


def dialect_words(root: pathlib.Path) -> collections.Counter[str]:
  """Returns how often each word that only this project used stands in it."""
  words: collections.Counter[str] = collections.Counter()
  pattern = re.compile(rf'\b({"|".join(DIALECT)})\b')
  for file in sorted((root / sources.PACKAGE).rglob('*')):
    if file.suffix in ('.py', '.h', '.cc'):
      words.update(pattern.findall(file.read_text(encoding='utf-8')))
  return words


def unformatted_files(root: pathlib.Path) -> list[str]:
  """Returns files that the formatter would change."""
  command = [sys.executable, '-m', 'ruff', 'format', '--check']
  command += ['--output-format=concise', '.']
  lines = _output(command, root, statuses=(0, 1)).splitlines()
  return [line.split(':')[0] for line in lines if ': unformatted:' in line]


def reading_order(root: pathlib.Path) -> dict[str, int]:
  """Returns lines of the files that docs/design.md says to read, in order."""
  text = (root / 'docs' / 'design.md').read_text(encoding='utf-8')
  section = re.search(r'^#+ Reading order\n(.*?)(?=^#|\Z)', text, re.M | re.S)
  if section is None:
    return {}
  paths = re.findall(r'`([\w/]+\.\w+)`', section[1])
  return {path: _line_count(root, path) for path in paths}


def _line_count(root: pathlib.Path, path: str) -> int:
  """Returns a file's lines; the path may leave out the package."""
  file = root / path
  if not file.exists():
    file = root / sources.PACKAGE / path
  return len(file.read_text(encoding='utf-8').splitlines())


def path_lengths(modules: Mapping[str, sources.Module]) -> dict[str, int]:
  """Returns lines of the functions on the path, docstrings included."""
  lengths = {}
  for name in DECODE_PATH:
    node = sources.find_function(name, modules)
    if node is not None:
      first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
      lengths[name] = (node.end_lineno or 0) - first + 1
  return lengths


def broken_links(modules: Mapping[str, sources.Module]) -> list[str]:
  """Returns steps of the path that no call makes, or that do not exist."""
  broken = []
  for name in DECODE_PATH:
    if sources.find_function(name, modules) is None:
      broken.append(f'{name} does not exist')
  for caller, callee in itertools.pairwise(DECODE_PATH):
    node = sources.find_function(caller, modules)
    if node is not None and callee.split('.')[-1] not in _called_names(node):
      broken.append(f'{caller} does not call {callee}')
  return broken


def _called_names(function: sources.Function) -> set[str]:
  calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
  return {sources.last_name(call) for call in calls}


def _output(
  command: Sequence[str], root: pathlib.Path, statuses: Sequence[int] = (0,)
) -> str:
  """Returns what a command prints in `root`, if it ends well."""
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  if done.returncode not in statuses:
    raise RuntimeError(f'{command} ended with {done.returncode}: {done.stderr}')
  return done.stdout


if __name__ == '__main__':
  app.run(main)
