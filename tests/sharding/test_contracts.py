"""Cached equals uncached over split slots, and what a mesh refuses."""

import pytest

from tests.sharding.contracts import CONTRACTS
from tests.sharding.eight_devices import run_lines


@pytest.mark.parametrize('group', CONTRACTS)
def test_contracts(group):
  lines = list(run_lines('tests.sharding.contracts', group))
  assert [line['name'] for line in lines] == list(CONTRACTS[group])
  wrong = {line['name']: line['fault'] for line in lines if line['fault']}
  assert not wrong, wrong
