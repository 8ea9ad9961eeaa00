"""Which modules of the package import which, and what no room may import."""

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping

from tests.sources import (
  PACKAGE,
  Module,
  code_lines,
  functions,
  last_name,
  packages_around,
)

# From the top to the ground. A room imports from lower floors only; rooms that
# share a floor do not import each other.
FLOORS = (
  ('__init__',),
  ('interop', 'memory', 'sharding', 'testing', 'text'),
  ('checkpoints',),
  ('decoding',),
  ('models',),
  ('attention', 'caches'),
  ('layers',),
  ('kernels',),
  ('streams',),
  ('native',),
  ('mesh',),
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
    _statement_names(module, modules),
    _literal_names(module),
    _files_of_folder(module, modules),
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
    elif isinstance(node, ast.Call) and last_name(node) == 'import_module':
      yield from ((text, node.lineno) for text in _strings(node.args))


def _files_of_folder(
  module: Module, modules: Mapping[str, Module]
) -> Iterator[tuple[str, int]]:
  """Yields the modules of a package that imports every file of its folder."""
  for node in ast.walk(module.tree):
    if isinstance(node, ast.Call) and last_name(node) == 'iter_modules':
      for name in modules:
        if name.rpartition('.')[0] == module.name:
          yield name, node.lineno


def _strings(nodes: Iterable[ast.AST]) -> Iterator[str]:
  for node in nodes:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value


def unreachable_lines(modules: Mapping[str, Module]) -> dict[str, int]:
  """Returns code lines by module that the package's face leads nowhere to."""
  reached: set[str] = set()
  waiting = [PACKAGE]
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      for target in imported_modules(modules[name], modules):
        waiting += [target, *packages_around(target)]
  return {
    name: code_lines(module)
    for name, module in modules.items()
    if name not in reached
  }


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
