"""Ways to feed a text through a cache; each must give the uncached logits."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from kvjax.testing.subject import RunState, Subject, change, feed, start


@dataclasses.dataclass(frozen=True)
class Plan:
  """How texts are cut.

  Attributes:
    tokens: `[B, T, ...]`.
    chunk: most tokens of a row in one call.
    multiple: every cut is at a multiple of this.
    rewind_by: tokens that are taken back after each call.
    ragged: rows may advance by different numbers of tokens.
    seed: of ragged cuts.
  """

  tokens: np.ndarray
  chunk: int
  multiple: int = 1
  rewind_by: int = 1
  ragged: bool = True
  seed: int = 0

  @property
  def batch(self) -> int:
    return self.tokens.shape[0]

  @property
  def length(self) -> int:
    return self.tokens.shape[1]

  @property
  def middle(self) -> np.ndarray:
    """Tokens `[B]` before a fork or gather: about half, unequal if ragged."""
    half = self.length // 2 // self.multiple
    return self.multiple * np.maximum(half - self._offsets(2), 0)

  @property
  def drafts(self) -> np.ndarray:
    """Tokens `[B]` of each row that are taken back."""
    return np.maximum(self.rewind_by - self._offsets(3), 0)

  def _offsets(self, count: int) -> np.ndarray:
    """Returns `[B]` of 0 to `count - 1`, by which rows differ if ragged."""
    rows = np.arange(self.batch) % count
    return rows if self.ragged else np.zeros_like(rows)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one text became in a scenario.

  Attributes:
    name: which of several texts; empty where there is one text.
    tokens: `[B, T, ...]` that were fed.
    logits: of these tokens, an array `[T, ...]` a row.
  """

  name: str
  tokens: np.ndarray
  logits: tuple[np.ndarray | None, ...]


Scenario = Callable[[Subject, Plan], Iterator[Outcome]]


def whole_chunks(subject: Subject, plan: Plan) -> Iterator[Outcome]:
  """Every row advances by the same number of tokens."""
  state = start(subject, plan.batch)
  state = feed_to(subject, state, plan, plan.tokens, plan.length)
  yield Outcome('', plan.tokens, state.logits)


def ragged_rows(subject: Subject, plan: Plan) -> Iterator[Outcome]:
  """Each row advances by another number of tokens, perhaps none."""
  rng = np.random.default_rng(plan.seed)
  largest = plan.chunk // plan.multiple
  state = start(subject, plan.batch)
  while (state.seen < plan.length).any():
    counts = plan.multiple * rng.integers(0, largest + 1, plan.batch)
    counts = np.minimum(counts, plan.length - state.seen)
    if counts.any():
      state = feed(subject, state, plan.tokens, counts)
  yield Outcome('', plan.tokens, state.logits)


def after_rewind(subject: Subject, plan: Plan) -> Iterator[Outcome]:
  """After each call some tokens are fed that are then taken back."""
  drafts = np.roll(plan.tokens, 1, axis=0)[:, ::-1]
  state = start(subject, plan.batch)
  while (state.seen < plan.length).any():
    state = feed(subject, state, plan.tokens, _next_counts(state, plan))
    drafted = feed(subject, state, drafts, plan.drafts)
    cache = change(drafted, subject.rewind, 'rewind', state.seen)
    state = dataclasses.replace(state, cache=cache)
  yield Outcome('', plan.tokens, state.logits)


def after_gather(subject: Subject, plan: Plan) -> Iterator[Outcome]:
  """Rows are reordered half-way, the first of them twice, and then diverge."""
  state = start(subject, plan.batch)
  state = feed_to(subject, state, plan, plan.tokens, plan.middle)
  rows = np.roll(np.arange(plan.batch, dtype=np.int32), 1)
  rows[-1] = rows[0]
  cache = change(state, subject.take, 'take', rows)
  logits = tuple(state.logits[row] for row in rows)
  state = RunState(cache, state.seen[rows], logits)
  # The past is that of the gathered row, the future that of the row itself.
  tokens = _follow(plan.tokens[rows], plan.tokens, state.seen)
  state = feed_to(subject, state, plan, tokens, plan.length)
  yield Outcome('', tokens, state.logits)


def after_fork(subject: Subject, plan: Plan) -> Iterator[Outcome]:
  """The cache is forked half-way; both caches continue, with other tokens."""
  first = start(subject, plan.batch)
  first = feed_to(subject, first, plan, plan.tokens, plan.middle)
  cache = change(first, subject.fork, 'fork')
  second = dataclasses.replace(first, cache=cache)
  other = _follow(plan.tokens, np.roll(plan.tokens, 1, axis=0), first.seen)
  # Calls alternate, so that a buffer which both caches share is noticed.
  while (first.seen < plan.length).any():
    counts = _next_counts(first, plan)
    second = feed(subject, second, other, counts)
    first = feed(subject, first, plan.tokens, counts)
  yield Outcome('the original', plan.tokens, first.logits)
  yield Outcome('the copy', other, second.logits)


def feed_to(
  subject: Subject,
  state: RunState,
  plan: Plan,
  tokens: np.ndarray,
  ends: int | np.ndarray,
) -> RunState:
  """Returns the run after `ends` tokens of each row, chunk by chunk."""
  while (state.seen < ends).any():
    counts = np.minimum(plan.chunk, ends - state.seen)
    state = feed(subject, state, tokens, counts)
  return state


def _next_counts(state: RunState, plan: Plan) -> np.ndarray:
  """Returns the tokens `[B]` of the next call: a chunk, or what remains."""
  return np.minimum(plan.chunk, plan.length - state.seen)


def _follow(
  past: np.ndarray, future: np.ndarray, seen: np.ndarray
) -> np.ndarray:
  """Returns rows of `past` up to `seen [B]`, of `future` from there on."""
  is_past = np.arange(past.shape[1])[None, :] < seen[:, None]
  is_past = is_past.reshape(is_past.shape + (1,) * (past.ndim - 2))
  return np.where(is_past, past, future)
