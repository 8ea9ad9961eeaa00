"""Every fact of the catalogue is some test of this folder."""

import ast
import pathlib
import re

CATALOGUE = {
  'T': (
    *range(1, 14),
    *range(15, 28),
    29,
    30,
    31,
    32,
    34,
    35,
    36,
    38,
    39,
    41,
    *range(45, 50),
    51,
    52,
    53,
  ),
  'A': (1, 2, 3, 4, 6, 7, 8),
  'B': (*range(9, 20), 26, 29),
  'C': tuple(range(30, 44)),
}


def ported() -> set[str]:
  """Returns the ids that test docstrings of this folder name."""
  found: set[str] = set()
  for path in pathlib.Path(__file__).parent.glob('test_*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.FunctionDef) and node.name.startswith('test_'):
        said = ast.get_docstring(node) or ''
        found |= set(re.findall(r'\b[TABC]-\d+\b', said.split(':')[0]))
  return found


def test_every_fact_is_ported():
  wanted = {f'{k}-{i}' for k, ids in CATALOGUE.items() for i in ids}
  assert sorted(wanted - ported()) == []
  assert sorted(ported() - wanted) == []
