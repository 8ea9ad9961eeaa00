"""Experiments: absl mains, each asking one question."""

import importlib.util

_LACKING = [
  package
  for package, module in (('absl-py', 'absl'), ('ml_collections',) * 2)
  if importlib.util.find_spec(module) is None
]
if _LACKING:
  raise SystemExit(f'experiments need more: pip install {" ".join(_LACKING)}')
