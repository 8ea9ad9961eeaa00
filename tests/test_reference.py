"""The reference has every public name, and docstrings that it can show."""

import inspect
import pathlib
import re
import types
from collections.abc import Iterator

import pytest

import kvjax

PAGES = pathlib.Path(__file__).parents[1] / 'docs' / 'reference'
MODULES = {
  module.__name__: module
  for name in kvjax.__all__
  if isinstance(module := getattr(kvjax, name), types.ModuleType)
} | {'kvjax': kvjax}


def public_objects() -> Iterator[tuple[str, object]]:
  """Yields public names with what they name, methods of classes included."""
  for module in MODULES.values():
    for name in module.__all__:
      thing = getattr(module, name)
      yield f'{module.__name__}.{name}', thing
      if inspect.isclass(thing):
        for method, function in inspect.getmembers(thing, callable):
          if not method.startswith('_'):
            yield f'{module.__name__}.{name}.{method}', function


@pytest.mark.parametrize('module', MODULES.values(), ids=MODULES)
def test_a_page_of_each_module_has_every_public_name_once(module):
  page = (PAGES / f'{module.__name__}.md').read_text()
  names = re.findall(r'^::: (\S+)$', page, re.MULTILINE)
  public = {f'{module.__name__}.{name}' for name in module.__all__}
  assert sorted(names) == sorted(public - MODULES.keys())


def described(thing: object) -> list[str]:
  """Returns what stands before the colon of each entry below `Args:`."""
  text = inspect.getdoc(thing) or ''
  section = re.search(r'^Args:\n((?:  .*\n?|\n)+)', text, re.MULTILINE)
  if section is None:
    return []
  return re.findall(r'^  (\S.*?)(?::\s.*|:)?$', section[1], re.MULTILINE)


def test_docstrings_name_each_parameter_by_itself():
  """`config, params: as in f` is no entry of a reference."""
  functions = {
    path: thing
    for path, thing in public_objects()
    if inspect.isfunction(thing) and inspect.getdoc(thing)
  }
  for path, function in functions.items():
    parameters = set(inspect.signature(function).parameters)
    names = described(function)
    assert set(names) <= parameters, (path, names)
    module, _, name = path.rpartition('.')
    if module in MODULES:
      assert set(names) == parameters, (path, parameters - set(names))
  assert {'kvjax.fork', 'kvjax.memory.fit', 'kvjax.Form.scoring'} <= set(
    functions
  )
