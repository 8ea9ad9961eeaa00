"""Python sources of a package: its modules, lines and functions, never run."""

import ast
import dataclasses
import io
import pathlib
import tokenize
from collections.abc import Iterator, Mapping

PACKAGE = 'kvjax'

Function = ast.FunctionDef | ast.AsyncFunctionDef


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


def find_function(name: str, modules: Mapping[str, Module]) -> Function | None:
  """Returns the function of a name such as `kvjax.caches.kind.Kind.write`."""
  for module in reversed(packages_around(name)):
    if module in modules:
      inner = name.removeprefix(f'{module}.')
      return dict(functions(modules[module])).get(inner)
  return None


def packages_around(name: str) -> list[str]:
  """Returns `a` and `a.b` of `a.b.c`."""
  parts = name.split('.')
  return ['.'.join(parts[:count]) for count in range(1, len(parts))]


def last_name(call: ast.Call) -> str:
  """Returns `c` of `a.b.c(...)` and of `c(...)`."""
  match call.func:
    case ast.Name(id=name) | ast.Attribute(attr=name):
      return name
  return ''
