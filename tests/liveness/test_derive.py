"""Decoding with the derived cache equals the uncached program."""

import importlib.util
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kvjax.liveness import AnalysisError, derive
from tests.liveness import (
  zoo,
  zoo_fixed,
  zoo_mixers,
  zoo_recent,
  zoo_variants,
)

ENTRIES = (
  zoo.ENTRIES
  | zoo_variants.ENTRIES
  | zoo_mixers.ENTRIES
  | zoo_recent.ENTRIES
  | zoo_fixed.ENTRIES
)
LENGTHS = (7, 21, 26)  # Never traced by the analysis.
CASES = """
  single/named mha_rope/named gqa_rope/named gqa_rope/repeated
  gqa_rope/scanned gqa_rope/folded window/named window/repeated window/folded
  mla_expanded/named mla_absorbed/joined gta/plain tpa/named cross/named
  shared/scanned learned_positions/named tied/plain stack/named mta/named
  mta/convolved short_conv/named short_conv/joined short_conv/primitive
  look_ahead/named prefix/named linear/named linear/scan linear/decayed
  prefix_mean/cumsum fixed_queries/scan fixed_queries/named
  queries_by_position/plain a_temperature_a_row/plain rwkv/plain
  gated_delta/plain forgetting/plain sinks/plain chunked/plain
  token_choice/plain
"""


def cases() -> list[Any]:
  return [
    pytest.param(*case.split('/'), id=case.replace('/', '_'))
    for case in CASES.split()
  ]


@pytest.mark.parametrize('name, spelling', cases())
def test_equals_the_uncached_program(name: str, spelling: str) -> None:
  entry = ENTRIES[name]
  program = entry.spellings[spelling]
  draw = np.random.default_rng(3)
  x = draw.normal(size=(max(LENGTHS), zoo.D)).astype(np.float32)
  if entry.tokens:
    x = draw.integers(0, 11, max(LENGTHS)).astype(np.int32)
  init, extend = derive(program, x[:8])
  y, _ = jax.jit(extend)(init(max(LENGTHS)), x)
  delay = 2 if name == 'look_ahead' else 0
  start = 5 if name == 'prefix' else 0
  for length in LENGTHS if spelling == 'named' else LENGTHS[-1:]:
    want = jax.jit(program)(x[:length])[start : length - delay]
    got = y[delay:length][start:]
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


def test_rings_hold_the_live_range_and_the_cache_is_donated() -> None:
  program = zoo.grouped(zoo.K, window=4)
  init, extend = derive(program, zoo.weight(8, zoo.D))
  cache = init(64)
  for stream in cache.streams.values():
    assert stream.shape[0] == 3
  x = zoo.weight(1, zoo.D)
  step = jax.jit(extend, donate_argnums=0).lower(cache, x).compile()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  assert step.memory_analysis().alias_size_in_bytes == size


def test_beyond_the_capacity_nothing_is_written() -> None:
  init, extend = derive(zoo.grouped(zoo.K), zoo.weight(8, zoo.D))
  x = zoo.weight(6, zoo.D)
  _, full = extend(init(5), x[:5])
  y, after = extend(full, x[5:])
  assert np.isnan(y).all()
  for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(a, b)


def test_refuses_what_has_no_exact_cache() -> None:
  for program in (
    zoo_mixers.masked(zoo_mixers.everyone),
    zoo_mixers.length_dependent,
  ):
    with pytest.raises(AnalysisError, match='no exact cache'):
      derive(program, zoo.weight(8, zoo.D))


def test_refuses_python_loops_over_positions() -> None:
  with pytest.raises(AnalysisError, match='lax.scan'):
    derive(zoo_mixers.linear_loop, zoo.weight(8, zoo.D))


def test_refuses_a_loop_whose_rows_it_cannot_follow() -> None:
  def program(x):
    turned = jax.numpy.flip(jax.numpy.flip(x, 0), 0)
    step = lambda total, row: (total + row, total)
    return jax.lax.scan(step, jax.numpy.zeros(zoo.D), turned)[1]

  init, _ = derive(program, zoo.weight(8, zoo.D))
  with pytest.raises(AnalysisError, match='no loop over new rows'):
    init(9)


def test_a_program_from_a_file(tmp_path: pathlib.Path) -> None:
  path = tmp_path / 'attention.py'
  path.write_text(ELSEWHERE)
  spec = importlib.util.spec_from_file_location('elsewhere', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  x = zoo.weight(21, zoo.D)
  init, extend = derive(module.attention, x[:8])
  y, _ = jax.jit(extend)(init(21), x)
  np.testing.assert_allclose(y, module.attention(x), rtol=2e-4, atol=2e-5)


ELSEWHERE = """
import jax
import numpy as np

W = np.random.default_rng(0).normal(size=(3, 10, 6)).astype(np.float32)

def attention(x):
  q, k, v = (x @ w for w in W)
  past = np.tril(np.ones((len(x), len(x)), bool))
  return jax.nn.softmax(jax.numpy.where(past, q @ k.T, -1e30)) @ v
"""
