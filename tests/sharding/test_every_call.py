"""Two processes of two devices compute what one process computes."""

import jax
import pytest

from tests.sharding.processes import run_processes

CASES = ('slots', 'paged'), ('rows', 'dense'), ('experts', 'dense')


@pytest.mark.parametrize('layout, kind', CASES)
def test_every_call_of_two_processes_is_that_of_one_device(layout, kind):
  found = run_processes('tests.sharding.every_call', 2, 2, layout, kind)
  first, second = found
  assert first == second  # each reads every id and flag
  assert first['overflow'] == [True, False, False, False]
  assert first['check'].startswith('Rows [0] were given tokens beyond')
  assert first['greedy'][2] == [-1] * 5 != first['greedy'][0]


def test_arrays_that_other_processes_hold_are_read_by_all_at_once():
  found = run_processes('tests.sharding.test_every_call', 2, 2)
  assert found == [[list(range(8)), list(range(8)), False]] * 2


def main():
  import numpy as np
  from jax.sharding import NamedSharding, PartitionSpec

  from kvjax.mesh.host import can_read
  from kvjax.sharding import host

  mesh = jax.make_mesh((4,), ('all',))
  numbers = np.arange(8)
  make = jax.make_array_from_callback
  split, whole = (
    make((8,), NamedSharding(mesh, spec), numbers.__getitem__)
    for spec in (PartitionSpec('all'), PartitionSpec())
  )
  return [host(split).tolist(), host(whole).tolist(), can_read(split)]
