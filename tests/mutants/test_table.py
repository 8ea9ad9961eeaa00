"""The table of faults matches the code and the tests it names."""

import re

from absl.testing import absltest, parameterized

from tests.mutants.run import ROOT, page
from tests.mutants.table import MUTANTS


class TableTest(parameterized.TestCase):
  @parameterized.named_parameters((m.name, m) for m in MUTANTS)
  def test_matches_once_and_names_tests_that_exist(self, mutant):
    text = (ROOT / mutant.path).read_text()
    self.assertNotEqual(mutant.apply(text), text)
    file, *names = mutant.test.split('::')
    tests = (ROOT / file).read_text()
    if names and not names[0].startswith('test_'):
      self.assertIn(f'class {names.pop(0)}', tests)
    for name in names:  # a parametrized test is named by a prefix of its id
      found = re.findall(r'def (test_\w+)', tests)
      self.assertTrue(any(name.startswith(test) for test in found), name)

  def test_the_table_in_the_docs_is_this_one(self):
    text = (ROOT / 'docs' / 'dev' / 'mutants.md').read_text()
    self.assertEqual(text, page(MUTANTS))

  def test_names_differ_and_suffice(self):
    self.assertLen({m.name for m in MUTANTS}, len(MUTANTS))
    self.assertGreater(len(MUTANTS), 30)


if __name__ == '__main__':
  absltest.main()
