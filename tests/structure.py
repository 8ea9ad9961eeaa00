"""Measures the structure of the repository and prints it as a table.

  python -m tests.structure [--root=DIRECTORY] [--names]

Sources are parsed, never imported; two figures come from other programs: the
modules that `import kvjax` loads, and what `ruff format` would change.
`tests/test_structure.py` holds most of the figures to a limit.
"""

import ast
import collections
import dataclasses
import io
import itertools
import pathlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import app, flags

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'kvjax'
# From the top to the ground. A room imports from lower floors only; rooms that
# share a floor do not import each other.
FLOORS = (
  ('__init__',),
  ('interop', 'memory', 'testing', 'text'),
  ('checkpoints',),
  ('decoding',),
  ('models',),
  ('attention', 'caches'),
  ('layers',),
  ('kernels',),
  ('streams',),
  ('native',),
  (
    'liveness',
    'renamed',
    'context',
    'strict_json',
    'frozen_json',
    'tree_paths',
    'arguments',
  ),
  ('display', 'progress_bar'),
)
# Attention reads views, and never learns where a cache put the tokens.
FREE_OF_CACHES = ('attention', 'kernels', 'layers', 'models', 'streams')
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

Function = ast.FunctionDef | ast.AsyncFunctionDef

_ROOT = flags.DEFINE_string('root', str(ROOT), 'The repository to measure.')
_NAMES = flags.DEFINE_bool('names', False, 'Print what was counted as well.')


@dataclasses.dataclass(frozen=True)
class Module:
  """One Python file.

  Attributes:
    name: as an import statement spells it; a package without `.__init__`.
    path: of the file, relative to the repository.
    text: of the file.
    tree: its syntax.
  """

  name: str
  path: pathlib.PurePath
  text: str
  tree: ast.Module

  @property
  def room(self) -> str:
    """The directory below the package, or a file that is in none."""
    return self.path.with_suffix('').parts[1]


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
  modules = read_modules(root, PACKAGE)
  yield from _size_figures(root, modules)
  unreached = unreachable_lines(modules)
  yield Figure(
    'code lines that `import kvjax` cannot reach',
    sum(unreached.values()),
    _numbered(unreached),
  )
  loaded = loaded_modules(root)
  yield Figure('modules that `import kvjax` loads', len(loaded), tuple(loaded))
  lists = {
    'imports between rooms that run back up': upward_imports(modules),
    'circles of imports': circles(modules),
    f'imports of caches in {", ".join(FREE_OF_CACHES)}': cache_imports(modules),
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
  root: pathlib.Path, modules: Mapping[str, Module]
) -> Iterator[Figure]:
  code: collections.Counter[str] = collections.Counter()
  comments: collections.Counter[str] = collections.Counter()
  for module in modules.values():
    code[module.room] += code_lines(module)
    comments[module.room] += comment_lines(module)
  yield Figure(f'code lines of {PACKAGE}/', code.total())
  for room, count in code.most_common():
    yield Figure(f'  {room}', count)
  studies = read_modules(root, 'experiments').values()
  yield Figure('code lines of experiments/', sum(map(code_lines, studies)))
  yield Figure('comment lines a code line', comments.total() / code.total())
  for room, count in code.most_common():
    yield Figure(f'  {room}', comments[room] / max(count, 1))


def _numbered(counts: Mapping[str, int]) -> tuple[str, ...]:
  return tuple(f'{count:6,} {name}' for name, count in counts.items())


# Sources and their lines.


def read_modules(root: pathlib.Path, package: str) -> dict[str, Module]:
  """Returns the modules of a package by their dotted names."""
  modules = {}
  for file in sorted((root / package).rglob('*.py')):
    path = file.relative_to(root)
    parts = path.with_suffix('').parts
    name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    text = file.read_text(encoding='utf-8')
    modules[name] = Module(name, path, text, ast.parse(text, str(path)))
  return modules


def code_lines(module: Module) -> int:
  """Returns how many lines hold code: no comment, docstring or blank line."""
  layout = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
  }
  lines: set[int] = set()
  for token in _tokens(module):
    if token.type not in layout:
      lines.update(range(token.start[0], token.end[0] + 1))
  return len(lines - _docstring_lines(module))


def comment_lines(module: Module) -> int:
  """Returns how many lines hold a comment, code before it or not."""
  tokens = _tokens(module)
  return sum(token.type == tokenize.COMMENT for token in tokens)


def _tokens(module: Module) -> Iterator[tokenize.TokenInfo]:
  return tokenize.generate_tokens(io.StringIO(module.text).readline)


def _docstring_lines(module: Module) -> set[int]:
  lines: set[int] = set()
  for node in ast.walk(module.tree):
    if isinstance(node, ast.Module | ast.ClassDef | Function):
      if ast.get_docstring(node, clean=False) is not None:
        text = node.body[0]
        lines.update(range(text.lineno, (text.end_lineno or 0) + 1))
  return lines


# Imports.


def imported_modules(
  module: Module, modules: Mapping[str, Module]
) -> dict[str, int]:
  """Returns the modules that one module names, with the line of the first.

  Every import statement counts, wherever it stands, and so do literal names
  of modules where modules are imported by name (`importlib.import_module`, a
  table of lazily loaded attributes). Packages around an imported module,
  which Python loads before it, do not.
  """
  names: dict[str, int] = {}
  for name, line in itertools.chain(
    _statement_names(module, modules), _literal_names(module)
  ):
    if name in modules and name != module.name:
      names.setdefault(name, line)
  return names


def _statement_names(
  module: Module, modules: Mapping[str, Module]
) -> Iterator[tuple[str, int]]:
  for node in ast.walk(module.tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      source = _source(module, node)
      for alias in node.names:
        submodule = f'{source}.{alias.name}'
        # A name that is no module is an attribute of the source.
        yield (submodule if submodule in modules else source), node.lineno


def _source(module: Module, node: ast.ImportFrom) -> str:
  """Returns the absolute name after `from`."""
  if not node.level:
    return node.module or ''
  is_package = module.path.name == '__init__.py'
  parts = module.name.split('.')
  base = parts[: len(parts) - node.level + is_package]
  return '.'.join([*base, node.module] if node.module else base)


def _literal_names(module: Module) -> Iterator[tuple[str, int]]:
  """Yields strings by which a module may be imported.

  They are arguments of `import_module`, and every string of a module that
  loads its attributes late: there, names may be relative to the module.
  """
  is_lazy = any(name == '__getattr__' for name, _ in functions(module))
  for node in ast.walk(module.tree):
    if is_lazy:
      for text in _strings([node]):
        yield text, node.lineno
        yield f'{module.name}.{text}', node.lineno
    elif isinstance(node, ast.Call) and _last_name(node) == 'import_module':
      yield from ((text, node.lineno) for text in _strings(node.args))


def _strings(nodes: Iterable[ast.AST]) -> Iterator[str]:
  for node in nodes:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value


def _last_name(call: ast.Call) -> str:
  """Returns `c` of `a.b.c(...)` and of `c(...)`."""
  match call.func:
    case ast.Name(id=name) | ast.Attribute(attr=name):
      return name
  return ''


def unreachable_lines(modules: Mapping[str, Module]) -> dict[str, int]:
  """Returns code lines by module that the package's face leads nowhere to."""
  reached: set[str] = set()
  waiting = [PACKAGE]
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      for target in imported_modules(modules[name], modules):
        waiting += [target, *_packages_around(target)]
  return {
    name: code_lines(module)
    for name, module in modules.items()
    if name not in reached
  }


def _packages_around(name: str) -> list[str]:
  parts = name.split('.')
  return ['.'.join(parts[:count]) for count in range(1, len(parts))]


def loaded_modules(root: pathlib.Path) -> list[str]:
  """Returns the modules of the package that `import kvjax` loads."""
  code = f'import sys, {PACKAGE}; print(*sys.modules)'
  names = _output([sys.executable, '-c', code], root).split()
  return sorted(name for name in names if name.split('.')[0] == PACKAGE)


def upward_imports(modules: Mapping[str, Module]) -> list[str]:
  """Returns imports of another room that is not on a lower floor."""
  floors = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
  wrong = []
  for module in modules.values():
    for name, line in imported_modules(module, modules).items():
      source, target = module.room, modules[name].room
      if source == target:
        continue
      known = source in floors and target in floors
      if not known or floors[source] >= floors[target]:
        wrong.append(f'{module.path}:{line}: {source} -> {name}')
  return wrong


def circles(modules: Mapping[str, Module]) -> list[str]:
  """Returns groups of modules each of which imports all others in the end."""
  imports = {
    name: set(imported_modules(module, modules))
    for name, module in modules.items()
  }
  reached = {name: _reached(name, imports) for name in modules}
  groups = {
    frozenset(other for other in reached[name] if name in reached[other])
    for name in modules
  }
  return sorted(', '.join(sorted(group)) for group in groups if group)


def _reached(name: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
  """Returns what a module imports, directly or not."""
  reached: set[str] = set()
  waiting = list(imports[name])
  while waiting:
    target = waiting.pop()
    if target not in reached:
      reached.add(target)
      waiting += imports[target]
  return reached


def cache_imports(modules: Mapping[str, Module]) -> list[str]:
  """Returns imports of caches in rooms that must not know any."""
  return [
    f'{module.path}:{line}: {name}'
    for module in modules.values()
    if module.room in FREE_OF_CACHES
    for name, line in imported_modules(module, modules).items()
    if modules[name].room == 'caches'
  ]


def imports_package(module: Module, package: str) -> bool:
  """Returns whether a module imports anything of a package by name."""
  names = (name for name, _ in _statement_names(module, {}))
  return any(name.split('.')[0] == package for name in names)


# Functions and classes.


def functions(module: Module) -> Iterator[tuple[str, Function]]:
  """Yields functions and methods with their names within the module."""
  yield from _functions(module.tree, '')


def _functions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
  for node in ast.iter_child_nodes(parent):
    if isinstance(node, Function):
      yield prefix + node.name, node
    named = isinstance(node, ast.ClassDef | Function)
    inner = f'{prefix}{node.name}.' if named else prefix
    yield from _functions(node, inner)


def long_signatures(modules: Mapping[str, Module]) -> list[str]:
  """Returns functions with too many parameters, each with their number.

  The receiver of a method does not count, nor do parameters of a public
  function that a caller must name.
  """
  return [
    f'{module.path}:{node.lineno}: {name} {count}'
    for module in modules.values()
    for name, node in functions(module)
    if (count := _parameters(name, node)) >= MANY_PARAMETERS
  ]


def _parameters(name: str, node: Function) -> int:
  arguments = node.args
  positional = [*arguments.posonlyargs, *arguments.args]
  if positional and positional[0].arg in ('self', 'cls'):
    positional = positional[1:]
  count = len(positional) + bool(arguments.vararg) + bool(arguments.kwarg)
  is_public = not any(part.startswith('_') for part in name.split('.'))
  return count if is_public else count + len(arguments.kwonlyargs)


def packed_stars(modules: Mapping[str, Module]) -> list[str]:
  """Returns calls `f(*x)` in a function that assigns a tuple to `x`."""
  places = {
    (module.path, node.lineno, node.value.id)
    for module in modules.values()
    for _, function in functions(module)
    for node in _starred_names(function)
    if node.value.id in _tuple_names(function)
  }
  return [f'{path}:{line}: *{name}' for path, line, name in sorted(places)]


def _starred_names(function: Function) -> Iterator[ast.Starred]:
  for call in ast.walk(function):
    if isinstance(call, ast.Call):
      for node in call.args:
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Name):
          yield node


def _tuple_names(function: Function) -> set[str]:
  return {
    target.id
    for node in ast.walk(function)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    for target in node.targets
    if isinstance(target, ast.Name)
  }


def repeated_class_names(modules: Mapping[str, Module]) -> list[str]:
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
  for file in sorted((root / PACKAGE).rglob('*')):
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
    file = root / PACKAGE / path
  return len(file.read_text(encoding='utf-8').splitlines())


def path_lengths(modules: Mapping[str, Module]) -> dict[str, int]:
  """Returns lines of the functions on the path, docstrings included."""
  lengths = {}
  for name in DECODE_PATH:
    node = find_function(name, modules)
    if node is not None:
      first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
      lengths[name] = (node.end_lineno or 0) - first + 1
  return lengths


def broken_links(modules: Mapping[str, Module]) -> list[str]:
  """Returns steps of the path that no call makes, or that do not exist."""
  broken = []
  for name in DECODE_PATH:
    if find_function(name, modules) is None:
      broken.append(f'{name} does not exist')
  for caller, callee in itertools.pairwise(DECODE_PATH):
    node = find_function(caller, modules)
    if node is not None and callee.split('.')[-1] not in _called_names(node):
      broken.append(f'{caller} does not call {callee}')
  return broken


def find_function(name: str, modules: Mapping[str, Module]) -> Function | None:
  """Returns the function of a name such as `kvjax.caches.kind.Kind.write`."""
  for module in reversed(_packages_around(name)):
    if module in modules:
      inner = name.removeprefix(f'{module}.')
      return dict(functions(modules[module])).get(inner)
  return None


def _called_names(function: Function) -> set[str]:
  calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
  return {_last_name(call) for call in calls}


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
