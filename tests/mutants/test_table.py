"""The table of faults matches the code and the tests it names."""

import re

import pytest

from tests.mutants.run import ROOT, page
from tests.mutants.table import MUTANTS


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_matches_once_and_names_tests_that_exist(mutant):
  text = (ROOT / mutant.path).read_text()
  assert mutant.apply(text) != text
  file, *names = mutant.test.split('::')
  tests = (ROOT / file).read_text()
  if names and not names[0].startswith('test_'):
    assert f'class {names.pop(0)}' in tests
  for name in names:  # a parametrized test is named by its id
    defined = re.findall(r'def (test_\w+)', tests)
    assert any(name.startswith(test) for test in defined), name


def test_the_table_in_the_docs_is_this_one():
  text = (ROOT / 'docs' / 'dev' / 'mutants.md').read_text()
  assert text == page(MUTANTS)


def test_names_differ_and_suffice():
  assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
  assert len(MUTANTS) > 30
