"""Every program of the zoo, in every spelling: one verdict."""

from typing import Any

import numpy as np
import pytest

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


def cases() -> list[Any]:
  return [
    pytest.param(entry, spelling, id=f'{program}_{spelling}')
    for program, entry in ENTRIES.items()
    for spelling in entry.spellings
  ]


@pytest.mark.parametrize('entry, spelling', cases())
def test_verdict(entry: zoo.Entry, spelling: str) -> None:
  x = zoo.weight(8, zoo.D) * 3
  if entry.tokens:
    x = np.arange(8, dtype=np.int32) % 11
  report = liveness.analyze(entry.spellings[spelling], x)
  kept = sorted(
    (r.bytes_per_token, r.live_for)
    for r in report.tensors
    if r.kept and r.name not in report.static
  )
  assert report.causal == entry.causal, report
  assert tuple(kept) == entry.kept, report
  if spelling.startswith('named'):
    assert frozenset(report.keep) == entry.keep, report
    for name, live in entry.live_for:
      assert report.live_for[name] == live, f'{name}\n{report}'
