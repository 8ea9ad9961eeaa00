"""bfloat16 by FlashAttention's rule, over the whole product.

The error of a cached bfloat16 computation against exact arithmetic is at most
three times that of the plain bfloat16 computation: the oracle, rounding where
the formulas round. A bounded kind's survivors are those of the plain run.
"""

import dataclasses

import numpy as np
import pytest

from kvjax.testing import assert_cached_matches_uncached, poison
from tests.contract.oracle import Given, Oracle, bfloat16
from tests.contract.table import LENGTH, Cell, cells, draw, text
from tests.contract.test_product import on_clear_numbers

CELLS = list(cells(dtype='bfloat16'))


@pytest.mark.parametrize('cell', CELLS, ids=lambda cell: cell.name)
def test_error_is_at_most_three_times_that_of_plain_bfloat16(cell: Cell):
  on_clear_numbers(lambda seed: check(cell, seed))


def check(cell: Cell, seed: int) -> None:
  params, tokens = draw(cell.config, seed, sharp=1.0), text(seed)
  plain = cell.oracle(params, cast=bfloat16, clear=False)
  rows = [plain.row(row) for row in tokens]
  exact = np.stack(
    [
      seeing(cell.oracle(params, clear=False), seen).row(row)[0]
      for row, (_, seen) in zip(tokens, rows, strict=True)
    ]
  )
  error = np.abs(np.stack([logits for logits, _ in rows]) - exact).max()
  assert error > 1e-3  # it does round
  assert_cached_matches_uncached(
    lambda _: exact,
    cell.init,
    lambda *args: cell.extend(params, *args),
    poison=poison,
    tokens=tokens,
    chunkings=(cell.row.multiple, None),
    multiple=cell.row.multiple,
    widths=(LENGTH,),
    rtol=3 * error / np.abs(exact).max(),
  )


def seeing(oracle: Oracle, seen: list[np.ndarray]) -> Oracle:
  """Renumbering changes scores, not what is seen: its rule stays."""
  rules = tuple(
    rule if rule.renumber else Given(sight)
    for rule, sight in zip(oracle.rules, seen, strict=True)
  )
  return dataclasses.replace(oracle, rules=rules)
