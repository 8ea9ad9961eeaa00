"""Cached equals uncached: one assertion, for any model with any cache.

Every scenario feeds texts through the cache in another way and compares all
logits with those of the uncached forward.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kvjax.testing import scenarios
from kvjax.testing.differences import Difference, find_difference
from kvjax.testing.empty_slots import can_poison
from kvjax.testing.empty_slots import poison as poison_cache
from kvjax.testing.scenarios import Plan, Scenario
from kvjax.testing.subject import (
  CacheFunction,
  ExtendFunction,
  ForwardFunction,
  InitFunction,
  RowsFunction,
  Subject,
  as_logits,
  check_arguments,
  poisoned,
)


class NotPoisonedWarning(UserWarning):
  """Nobody says which slots of a cache are empty, so none was filled by NaN."""


def assert_cached_matches_uncached(
  forward: ForwardFunction,
  init: InitFunction,
  extend: ExtendFunction,
  *,
  rewind: RowsFunction | None = None,
  take: RowsFunction | None = None,
  fork: CacheFunction | None = None,
  poison: CacheFunction | None = None,
  tokens: Any = None,
  batch_size: int = 3,
  length: int = 13,
  vocab_size: int | None = None,
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
  slot that holds no token. No call may change its input cache.

  Args:
    forward: tokens `[B, T]` -> logits `[B, T, ...]`, without a cache.
    init: batch size -> an empty cache, a pytree of arrays.
    extend: cache, tokens `[B, W]`, int32 lengths `[B]` -> logits `[B, W, ...]`,
      new cache. A row advances by its first `lengths` tokens, perhaps none.
    rewind: cache, int32 lengths `[B]` -> the cache after the first `lengths`
      tokens of each row.
    take: cache, int32 rows `[B]` -> the cache of these rows.
    fork: cache -> an independent copy.
    poison: cache -> the cache with NaN in slots without a token; None for
      `kvjax.testing.poison` if it knows the cache, or else for no NaN and a
      `NotPoisonedWarning`.
    tokens: `[B, T, ...]` to feed; None for random ids.
    batch_size: rows of random ids.
    length: random ids of a row.
    seed: of random ids.
    vocab_size: of random ids; None for the size of the logits' last axis.
    chunkings: most tokens of a call; None for the whole text in one call.
    ragged: rows may advance by different numbers of tokens.
    wrap: length of one further text, longer than the slots of a cache that
      forgets; its tokens are the text over and over.
    rewind_by: tokens that can be taken back; the cache needs room for them.
    multiple: every cut is at a multiple of this number of tokens.
    widths: pad calls to these widths, to compile few programs.
    rtol: relative to the largest uncached logit.

  Returns:
    The largest relative difference of each scenario.

  Raises:
    AssertionError: names scenario, chunking, the first wrong position, its row,
      both values and what they look like, or the leaf that a call changed.
    TypeError: a function does not take the arguments that are listed here.
    ValueError: a function returns something else than is listed here.
  """
  if tokens is None:
    rng = np.random.default_rng(seed)
    if vocab_size is None:
      zeros = np.zeros((batch_size, length), np.int32)
      logits = as_logits('forward', forward(zeros), zeros.shape)
      vocab_size = logits.shape[-1]
    tokens = rng.integers(0, vocab_size, (batch_size, length), np.int32)
  tokens = np.asarray(tokens)
  subject = Subject(
    forward=forward,
    init=init,
    extend=extend,
    rewind=rewind,
    take=take,
    fork=fork,
    widths=tuple(sorted(widths)),
  )
  largest = max(chunk or tokens.shape[1] for chunk in chunkings)
  plan = Plan(
    tokens=tokens,
    chunk=max(min(largest, 7) // multiple, 1) * multiple,
    multiple=multiple,
    rewind_by=rewind_by,
    ragged=ragged,
    seed=seed,
  )
  planned = list(_plan_scenarios(plan, subject, chunkings, wrap))
  poison = _choose_poison(poison, init(len(tokens)))
  differences = list(_compare(subject, planned, rtol))
  if poison is not None:
    filled = poisoned(subject, poison)
    differences += _compare(filled, planned, rtol, 'poisoned, ')
  _assert_close(differences, rtol)
  return {d.name: d.relative for d in differences}


def _choose_poison(
  poison: CacheFunction | None, cache: Any
) -> CacheFunction | None:
  """Returns what fills empty slots; warns where nothing can."""
  if poison is not None:
    check_arguments('poison', poison)
    return poison
  if can_poison(cache):
    return poison_cache
  warnings.warn(
    f'A cache of type {type(cache).__name__} was not poisoned, so a read of an '
    'empty slot may go unseen: which of its slots hold no token? Pass poison=, '
    'or register a function by kvjax.testing.poison.register(cls, function).',
    NotPoisonedWarning,
    stacklevel=3,
  )
  return None


@dataclasses.dataclass(frozen=True)
class PlannedScenario:
  """A scenario under its name, with the plan that it follows."""

  name: str
  scenario: Scenario
  plan: Plan


def _plan_scenarios(
  plan: Plan,
  subject: Subject,
  chunkings: Sequence[int | None],
  wrap: int | None,
) -> Iterator[PlannedScenario]:
  """Yields the scenarios of the functions that the subject has."""
  for size in chunkings:
    name = 'the whole text at once' if size is None else f'chunks of {size}'
    chunk = plan.length if size is None else size
    chunked = dataclasses.replace(plan, chunk=chunk)
    yield PlannedScenario(name, scenarios.whole_chunks, chunked)
  if plan.ragged:
    yield PlannedScenario('ragged rows', scenarios.ragged_rows, plan)
  if wrap is not None:
    repeats = -(-wrap // plan.length)
    text = np.concatenate([plan.tokens] * repeats, axis=1)[:, :wrap]
    longer = dataclasses.replace(plan, tokens=text)
    name = f'wrap-around ({wrap} tokens)'
    yield PlannedScenario(name, scenarios.whole_chunks, longer)
  if subject.rewind is not None:
    yield PlannedScenario('after rewind', scenarios.after_rewind, plan)
  if subject.take is not None:
    yield PlannedScenario('after row gather', scenarios.after_gather, plan)
  if subject.fork is not None:
    yield PlannedScenario('after fork', scenarios.after_fork, plan)


def _compare(
  subject: Subject,
  planned: Sequence[PlannedScenario],
  rtol: float,
  prefix: str = '',
) -> Iterator[Difference]:
  """Yields the difference of every outcome of every scenario."""
  for case in planned:
    name = prefix + case.name
    chunk = case.plan.chunk
    try:
      for outcome in case.scenario(subject, case.plan):
        reference = as_logits(
          'forward', subject.forward(outcome.tokens), outcome.tokens.shape[:2]
        )
        full_name = f'{name}: {outcome.name}' if outcome.name else name
        logits = outcome.logits
        yield find_difference(full_name, chunk, logits, reference, rtol)
    except Exception as error:
      error.add_note(f'Scenario: {name}, calls of up to {chunk} tokens.')
      raise


def _assert_close(differences: Sequence[Difference], rtol: float) -> None:
  wrong = [d for d in differences if not d.relative <= rtol]
  if not wrong:
    return
  first, *others = wrong  # scenarios come from the simplest to the hardest
  message = str(first)
  if first.name.startswith('poisoned, '):
    message += (
      ' Without NaN in empty slots every scenario is right: a slot that holds '
      'no token was read.'
    )
  if others:
    message += '\nAlso different: ' + '; '.join(d.short for d in others)
  raise AssertionError(message)
