"""Every program of the zoo, in every spelling: one verdict."""

import numpy as np
from absl.testing import absltest, parameterized

from kvjax import liveness
from tests.liveness import (
  zoo,
  zoo_fixed,
  zoo_mixers,
  zoo_recent,
  zoo_unseen,
  zoo_variants,
)

ENTRIES = (
  zoo.ENTRIES
  | zoo_variants.ENTRIES
  | zoo_mixers.ENTRIES
  | zoo_fixed.ENTRIES
  | zoo_recent.ENTRIES
  | zoo_unseen.ENTRIES
)


def cases() -> list[tuple[str, zoo.Entry, str]]:
  return [
    (f'{program}_{spelling}', entry, spelling)
    for program, entry in ENTRIES.items()
    for spelling in entry.spellings
  ]


class ZooTest(parameterized.TestCase):
  @parameterized.named_parameters(*cases())
  def test_verdict(self, entry: zoo.Entry, spelling: str) -> None:
    x = zoo.weight(8, zoo.D) * 3
    if entry.tokens:
      x = np.arange(8, dtype=np.int32) % 11
    report = liveness.analyze(entry.spellings[spelling], x)
    kept = sorted(
      (r.bytes_per_token, r.live_for)
      for r in report.tensors
      if r.kept and r.name not in report.static
    )
    self.assertEqual(report.causal, entry.causal, report)
    self.assertEqual(tuple(kept), entry.kept, report)
    if spelling.startswith('named'):
      self.assertEqual(frozenset(report.keep), entry.keep, report)
      for name, live in entry.live_for:
        self.assertEqual(report.live_for[name], live, f'{name}\n{report}')


if __name__ == '__main__':
  absltest.main()
