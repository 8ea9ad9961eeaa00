"""The house rules that a machine can read: sizes, imports, names, one path.

`make structure` prints the figures; ruff holds functions to their complexity.
"""

import pytest

from tests import imports, sources, structure

ROOT = structure.ROOT
LONG_SIGNATURES = 4  # of jitted functions whose arguments are named one by one
LONGEST_FILE = 500


@pytest.fixture(scope='module')
def modules() -> dict[str, sources.Module]:
  return sources.read_modules(ROOT, sources.PACKAGE)


def test_no_file_is_long():
  files = [
    file
    for room in (sources.PACKAGE, 'experiments', 'tests')
    for file in (ROOT / room).rglob('*.py')
  ]
  lengths = {file: file.read_text().count('\n') for file in files}
  assert not {f: n for f, n in lengths.items() if n > LONGEST_FILE}


def test_imports_run_down_the_floors(modules):
  assert not imports.upward_imports(modules)


def test_every_room_stands_on_one_floor(modules):
  rooms = [room for floor in imports.FLOORS for room in floor]
  assert len(rooms) == len(set(rooms))
  assert {module.room for module in modules.values()} == set(rooms)


def test_attention_knows_no_cache(modules):
  assert not imports.cache_imports(modules)


def test_no_module_imports_itself_in_the_end(modules):
  assert not imports.circles(modules)


def test_the_face_of_the_package_leads_to_every_module(modules):
  assert not imports.unreachable_lines(modules)


def test_a_class_name_is_used_once(modules):
  assert not structure.repeated_class_names(modules)


def test_functions_have_few_parameters(modules):
  assert len(structure.long_signatures(modules)) <= LONG_SIGNATURES


def test_no_tuple_is_packed_to_be_spread(modules):
  assert not structure.packed_stars(modules)


def test_calls_lead_from_decode_step_to_the_write(modules):
  assert not structure.broken_links(modules)


def test_questions_share_rooms_and_mains_are_short():
  modules = sources.read_modules(ROOT, 'experiments')
  shared = {
    '__init__',
    'launch',
    'processes',
    'measuring',
    'reporting',
    'training',
  }
  for module in modules.values():
    imported = imports.imported_modules(module, modules)
    rooms = {modules[name].room for name in imported}
    assert rooms <= shared | {module.room}, module.path
    if module.path.name == '__main__.py':
      assert module.path.read_text().count('\n') < 150, module.path


def test_nothing_imports_experiments_and_no_module_is_a_drawer(modules):
  for module in modules.values():
    assert not imports.imports_package(module, 'experiments'), module.path
    assert module.path.stem not in ('utils', 'helpers', 'misc', 'common'), (
      module.path
    )
