"""liveness is an independent witness: it imports nothing else of kvjax.

How a result shows itself (`kvjax.display`) computes nothing.
"""

import ast
import pathlib

import kvjax.liveness


def test_imports_no_other_part_of_kvjax() -> None:
  room = pathlib.Path(kvjax.liveness.__file__).parent
  files = sorted(room.rglob('*.py'))
  assert len(files) > 10
  for path in files:
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'{path}: a relative import'
        modules = [node.module or '']
      elif isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
      else:
        continue
      for module in modules:
        if module.split('.')[0] == 'kvjax':
          own = f'{module}.'.startswith('kvjax.liveness.')
          assert own or module == 'kvjax.display', path
