"""Cached equals uncached: one assertion, for any model with any cache.

Every scenario feeds texts through the cache in another way and compares all
logits with those of the uncached forward.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import numpy as np

from kvjax.testing import scenarios
from kvjax.testing.differences import Difference, worst_difference
from kvjax.testing.empty_slots import can_poison
from kvjax.testing.empty_slots import poison as poison_cache
from kvjax.testing.scenarios import Outcomes, Plan
from kvjax.testing.subject import (
  Extend,
  Forward,
  Init,
  OnCache,
  OnRows,
  Subject,
  as_array,
  poisoned,
)

Scenario = Callable[[Subject, Plan], Outcomes]


def assert_cached_matches_uncached(
  forward: Forward,
  init: Init,
  extend: Extend,
  *,
  rewind: OnRows | None = None,
  take: OnRows | None = None,
  fork: OnCache | None = None,
  poison: OnCache | None = None,
  tokens: Any = None,
  batch_size: int = 3,
  length: int = 13,
  vocab_size: int = 17,
  seed: int = 0,
  chunkings: Sequence[int | None] = (1, 3, 7, None),
  ragged: bool = True,
  wrap: int | None = None,
  rewind_by: int = 1,
  multiple: int = 1,
  widths: Sequence[int] = (),
  rtol: float = 1e-5,
) -> dict[str, float]:
  """Asserts that a cache gives the logits of the uncached model.

  `max |cached - uncached| <= rtol max |uncached|` in every scenario: chunks of
  each size, ragged rows, a text longer than the cache (`wrap`), after rewind,
  after a gather of rows, after a fork, and all of them again with NaN in every
  slot that holds no token. No call may change the cache it is given.

  Args:
    forward: tokens `[B, T]` -> logits `[B, T, ...]`, without a cache.
    init: batch size -> an empty cache, a pytree of arrays.
    extend: cache, tokens `[B, W]`, int32 lengths `[B]` (only the first so many
      tokens of a row count, perhaps none) -> logits `[B, W, ...]`, new cache.
    rewind: cache, int32 lengths `[B]` -> the cache after so many tokens.
    take: cache, int32 rows `[B]` -> the cache of these rows.
    fork: cache -> an independent copy.
    poison: cache -> the cache with NaN where no token is; None for
      `kvjax.testing.poison` if it knows the cache, or else not at all.
    tokens: `[B, T, ...]` to feed; None for random ids.
    batch_size, length, vocab_size, seed: of random ids.
    chunkings: most tokens of a call; None for the whole text in one.
    ragged: rows may advance by different numbers of tokens.
    wrap: length of one more text, beyond the slots of a cache that forgets;
      its tokens are the text over and over.
    rewind_by: tokens that can be taken back; the cache needs room for them.
    multiple: every cut is at a multiple of this many tokens.
    widths: pad calls to these widths, so that few programs are compiled.
    rtol: relative to the largest uncached logit.

  Returns:
    The largest relative difference of each scenario.

  Raises:
    AssertionError: names scenario, chunking, row, position and both values of
      the worst difference, or the leaf that a call changed.
  """
  if tokens is None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (batch_size, length), np.int32)
  tokens = np.asarray(tokens)
  subject = Subject(
    forward, init, extend, rewind, take, fork, tuple(sorted(widths))
  )
  largest = max(c or tokens.shape[1] for c in chunkings)
  chunk = max(min(largest, 7) // multiple, 1) * multiple
  base = Plan(tokens, chunk, multiple, rewind_by, ragged, seed)
  named = list(_chunked(base, chunkings))
  named += list(_others(base, subject, wrap))
  fill = _choose_poison(poison, init, len(tokens))
  differences = []
  for who, prefix in _subjects(subject, fill):
    for name, scenario, plan in named:
      differences += _judge(who, prefix + name, scenario, plan)
  _assert_close(differences, rtol)
  return {v.name: v.relative for v in differences}


def _chunked(plan, chunkings) -> Iterator[tuple[str, Scenario, Plan]]:
  for size in chunkings:
    chunk = plan.length if size is None else size
    name = 'the whole text at once' if size is None else f'chunks of {size}'
    cut = dataclasses.replace(plan, chunk=chunk)
    yield name, scenarios.whole_chunks, cut


def _others(plan, subject, wrap) -> Iterator[tuple[str, Scenario, Plan]]:
  if plan.ragged:
    yield 'ragged rows', scenarios.ragged_rows, plan
  if wrap is not None:
    repeats = -(-wrap // plan.length)
    text = np.concatenate([plan.tokens] * repeats, axis=1)[:, :wrap]
    longer = dataclasses.replace(plan, tokens=text)
    yield f'wrap-around ({wrap} tokens)', scenarios.whole_chunks, longer
  if subject.rewind is not None:
    yield 'after rewind', scenarios.after_rewind, plan
  if subject.take is not None:
    yield 'after row gather', scenarios.after_gather, plan
  if subject.fork is not None:
    yield 'after fork', scenarios.after_fork, plan


def _choose_poison(poison, init, batch) -> OnCache | None:
  if poison is not None:
    return poison
  return poison_cache if can_poison(init(batch)) else None


def _subjects(subject, fill) -> Iterator[tuple[Subject, str]]:
  yield subject, ''
  if fill is not None:
    yield poisoned(subject, fill), 'poisoned, '


def _judge(subject, name, scenario, plan) -> Iterator[Difference]:
  try:
    for outcome in scenario(subject, plan):
      want = as_array(subject.forward(outcome.tokens))
      what = f'{name}: {outcome.what}' if outcome.what else name
      yield worst_difference(what, plan.chunk, outcome.logits, want)
  except Exception as error:
    error.add_note(f'Scenario: {name}, calls of up to {plan.chunk} tokens.')
    raise


def _assert_close(differences: Sequence[Difference], rtol: float) -> None:
  worst = max(differences, key=lambda v: v.relative)
  others = [v for v in differences if v.relative > rtol and v is not worst]
  message = str(worst)
  if others:
    message += '\nAlso different: ' + '; '.join(v.short for v in others)
  try:
    chex.assert_trees_all_close(
      worst.got, worst.want, rtol=0.0, atol=rtol * worst.scale
    )
  except AssertionError as error:
    raise AssertionError(message) from error
