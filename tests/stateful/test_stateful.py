"""Some runs of random operations; `make fuzz-cache` does a thousand."""

import pytest

from tests.stateful.explore import explore
from tests.stateful.subjects import Subject
from tests.stateful.tally import Tally

SUBJECTS = (
  Subject('mla', 'paged', int8=True),
  Subject('window_and_full', 'default'),
  Subject('gqa', 'dense'),
  Subject('gqa', 'wide_ring'),
  Subject('gqa', 'sinks'),
)


@pytest.mark.parametrize('subject', SUBJECTS, ids=lambda subject: subject.name)
def test_random_operations(subject):
  tally = Tally()
  explore(subject, tally, examples=10, steps=14, number=0)
  assert tally.examples >= 10 and tally.refusals and tally.compared > 50
