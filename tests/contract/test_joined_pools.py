"""Two pools joined hold the tokens of both, and take more."""

import numpy as np

import kvjax
from tests.contract.oracle import Sees
from tests.contract.table import VARIANTS, VOCAB, Cell, Row, draw

BATCH, WIDTH = 3, 3
PAGED = Row('paged', kvjax.Paged(page=2, pages=11), Sees(), 0, False)


def draw_tokens(seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, VOCAB, (BATCH, WIDTH), np.int32)


def test_two_pools_joined_hold_both():
  cell = Cell(VARIANTS[2], PAGED, None, PAGED.name)
  params = draw(cell.config, 0)
  oracle = cell.oracle(params)
  a, b = draw_tokens(1), draw_tokens(2)
  caches = [
    cell.extend(params, cell.init(BATCH, 13), x, np.array([3, 2, 1]))[1]
    for x in (a, b)
  ]
  both = kvjax.concat(caches)
  new = np.concatenate([b, a])
  count = np.array([3, 1, 2, 0, 3, 2])
  logits, both = cell.extend(params, both, new, count)
  for i, (old, more, n) in enumerate(zip([*a, *b], new, count, strict=True)):
    tokens = np.concatenate([old[: 3 - i % 3], more[:n]])
    want = oracle(tokens[None])[0, len(tokens) - n :]
    limit = 1e-5 * np.abs(want).max(initial=1.0)
    got = np.asarray(logits)[i, :n]
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)
