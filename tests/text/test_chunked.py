"""Prompts in chunks are prompts: same logits, same cache, two programs."""

import jax
import numpy as np
import pytest

import kvjax
from kvjax.text import chunked, prefill_in_chunks
from tests.facts import tiny

CONFIG = tiny.decoder()
PARAMS = tiny.params(CONFIG)
CHUNKS = 6, 2


def empty(rows=1, capacity=32):
  return kvjax.init_cache(CONFIG, rows, capacity)


@pytest.mark.parametrize('length', [1, 2, 3, 4, 6, 7, 13, 17])
def test_equals_prefill(length):
  ids = tiny.tokens(1, length)
  want, cache = kvjax.prefill(CONFIG, PARAMS, empty(), ids)
  got, after = prefill_in_chunks(CONFIG, PARAMS, empty(), ids, chunks=CHUNKS)
  tiny.close(got, want, 1e-6)
  tiny.alike(tiny.counters(after), tiny.counters(cache))


def test_rows_end_in_different_chunks():
  """Also a row without a token, and behind a warm cache."""
  ids, lengths = tiny.tokens(4, 17), np.asarray([17, 3, 0, 8])
  first = tiny.tokens(4, 2, seed=2)
  _, warm = kvjax.extend(CONFIG, PARAMS, empty(4), first)
  want, cache = kvjax.prefill(CONFIG, PARAMS, warm, ids, lengths, donate=False)
  got, after = prefill_in_chunks(
    CONFIG, PARAMS, warm, ids, lengths, chunks=CHUNKS, donate=False
  )
  rows = [0, 1, 3]
  tiny.close(got[rows, :], want[rows, :], 1e-6)
  assert np.isnan(got[2]).all()
  tiny.alike(tiny.counters(after), tiny.counters(cache))
  assert warm.length.tolist() == [2] * 4  # it was not donated


def test_two_programs_serve_all_lengths(monkeypatch):
  shapes = set()

  def count(config, params, cache, tokens, **more):
    shapes.add(tokens.shape)
    return kvjax.prefill(config, params, cache, tokens, **more)

  monkeypatch.setattr(chunked, 'prefill', count)
  for length in range(1, 20):
    ids = tiny.tokens(1, length)
    prefill_in_chunks(CONFIG, PARAMS, empty(), ids, chunks=CHUNKS)
  assert shapes == {(1, 6), (1, 2)}


def test_inside_a_trace():
  ids = tiny.tokens(1, 5)
  run = jax.jit(lambda c, x: prefill_in_chunks(CONFIG, PARAMS, c, x))
  got, _ = run(empty(), ids)
  want, _ = kvjax.prefill(CONFIG, PARAMS, empty(), ids)
  tiny.close(got, want, 1e-6)


@pytest.mark.parametrize(
  'chunks', [(2, 6), (4,), (4, 0), (4, 2.0), 4, (True, True)]
)
def test_refused_chunks(chunks):
  with pytest.raises(ValueError, match=r'chunks=.* must be two sizes'):
    prefill_in_chunks(CONFIG, PARAMS, empty(), tiny.tokens(1, 5), chunks=chunks)


def test_a_prompt_that_does_not_fit_leaves_the_cache():
  """Also where its first chunks would fit."""
  cache = empty(capacity=16)
  with pytest.raises(ValueError, match='17 tokens'):
    prefill_in_chunks(CONFIG, PARAMS, cache, tiny.tokens(1, 17), chunks=CHUNKS)
  assert cache.length.tolist() == [0]
