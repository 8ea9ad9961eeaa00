"""Eight devices give what one gives, and move what the formulas say.

`make mesh` runs all cells; here each pair of values occurs once.
"""

import collections
import itertools

import pytest

from kvjax.native import load
from tests.sharding import cells
from tests.sharding.eight_devices import run_lines

CHOSEN = cells.covering()


@pytest.mark.parametrize('model', cells.MODELS)
def test_covering_cells(model):
  names = [cell.name for cell in CHOSEN if cell.model == model]
  lines = list(run_lines('tests.sharding.run_cells', *names))
  assert [line['name'] for line in lines] == names
  wrong = {line['name']: line['faults'] for line in lines if line['faults']}
  assert not wrong, wrong


def test_every_pair_of_values_is_covered():
  pairs = set().union(*map(cells.pairs, CHOSEN))
  of_all = [cell for cell in cells.all_cells() if not cells.meaningless(cell)]
  assert pairs == set().union(*map(cells.pairs, of_all))
  assert len(CHOSEN) < len(of_all) / 10


def test_what_is_left_out_has_a_reason():
  left_out = collections.Counter(
    (cell.model, cell.layout)
    for cell in cells.all_cells()
    if cells.meaningless(cell)
  )
  assert set(left_out) == {
    ('mha', 'wide'),
    *itertools.product(('mha', 'gqa', 'mqa', 'mla'), ('experts',)),
  }
  assert set(left_out.values()) == {3 * 2 * 2}


def test_the_formulas_by_hand():
  """GQA of 8 heads of 64: kv heads in 2, slots in 4; MLA: slots in 8."""
  gqa = cells.Cell('gqa', 'kv_slots', 'dense', 'plain', 'auto')
  assert cells.exchanges(gqa) == [
    ('all-gather', 8 * 4 * 64 * 4),
    ('all-gather', 8 * 256 * 4),
    *[('all-reduce', 8 * 256 * 4)] * 3,
    ('all-to-all', 8 * 4 * 65 * 4),
  ]
  mla = cells.Cell('mla', 'slots', 'ring', 'int8', 'explicit')
  assert cells.exchanges(mla)[1] == ('all-gather', 8 * 8 * (128 + 64) * 4)
  assert cells.exchanges(mla)[-1] == ('all-to-all', 8 * 8 * 129 * 4)


def test_a_program_of_one_device_has_the_kernels_of_a_process_of_one():
  (alone,) = run_lines('tests.sharding.choices', devices=1)
  (among,) = run_lines('tests.sharding.choices', devices=8)
  assert (alone.pop('devices'), among.pop('devices')) == (1, 8)
  assert alone == among
  if not load.missing():
    for calls in among.values():
      assert load.DECODE in calls
