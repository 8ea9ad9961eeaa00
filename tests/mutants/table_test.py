"""The table of faults matches the code and the tests it names."""

import pathlib

from absl.testing import absltest, parameterized

from tests.mutants.run import ROOT
from tests.mutants.table import MUTANTS


class TableTest(parameterized.TestCase):
  @parameterized.named_parameters((m.name, m) for m in MUTANTS)
  def test_matches_once_and_names_tests_that_exist(self, mutant):
    text = (ROOT / mutant.path).read_text()
    self.assertNotEqual(mutant.apply(text), text)
    for test in mutant.tests:
      file, _, name = test.partition('::')
      self.assertIn(f'class {name}', (ROOT / pathlib.Path(file)).read_text())

  def test_names_differ_and_suffice(self):
    self.assertLen({m.name for m in MUTANTS}, len(MUTANTS))
    self.assertGreater(len(MUTANTS), 30)


if __name__ == '__main__':
  absltest.main()
