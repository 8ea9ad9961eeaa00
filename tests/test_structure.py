"""The house rules that a machine can read: sizes, arrows, names."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  path
  for room in ('kvjax', 'experiments')
  for path in (ROOT / room).rglob('*.py')
)
# What a room may import of the package, beside itself.
BELOW = {
  'native': {'context'},
  'streams': {'context', 'native'},
  'caches': {'context', 'native', 'streams'},
  'layers': {'context', 'kernels', 'native'},
  'kernels': {'context', 'native', 'streams'},
  'attention': {'kernels', 'layers', 'streams'},
  'models': {'attention', 'layers', 'kernels', 'streams'},
  'liveness': set(),
}


def body(function: ast.FunctionDef) -> int:
  """Returns lines after the signature and the docstring."""
  first = bool(ast.get_docstring(function)) and len(function.body) > 1
  return function.body[-1].end_lineno - function.body[first].lineno + 1


def imports(path: pathlib.Path) -> set[str]:
  """Returns the rooms of kvjax that a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module)
    elif isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
  parts = (name.split('.') for name in names)
  return {p[1] for p in parts if p[0] == 'kvjax' and len(p) > 1}


def test_no_file_is_over_400_lines_and_no_body_over_40():
  long = []
  for path in FILES:
    text = path.read_text()
    if text.count('\n') > 400:
      long.append((path.name, text.count('\n')))
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef) and body(node) > 40:
        long.append((path.name, node.name, body(node)))
  assert not long


def test_caches_and_attention_stay_small():
  rooms = [ROOT / 'kvjax' / name for name in ('caches', 'attention')]
  texts = [path.read_text() for room in rooms for path in room.rglob('*.py')]
  assert sum(text.count('\n') for text in texts) < 2500


def test_arrows_run_one_way():
  wrong = {}
  for room, below in BELOW.items():
    for path in (ROOT / 'kvjax' / room).rglob('*.py'):
      up = imports(path) - below - {room}
      if up:
        wrong[f'{room}/{path.name}'] = up
  assert not wrong


def test_nothing_imports_experiments_and_nobody_is_called_utils():
  for path in (ROOT / 'kvjax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        assert not (node.module or '').startswith('experiments'), path
    assert path.stem not in ('utils', 'helpers', 'misc', 'common')
