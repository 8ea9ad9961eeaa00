"""Ways to feed a text through a cache; each must give the uncached logits."""

import dataclasses
from collections.abc import Iterator

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
    """Where each row is forked or gathered: about half, not all alike."""
    half = self.length // 2 // self.multiple
    return self.multiple * np.maximum(half - self._apart(2), 0)

  @property
  def drafts(self) -> np.ndarray:
    """How many tokens of each row are taken back."""
    return np.maximum(self.rewind_by - self._apart(3), 0)

  def _apart(self, count: int) -> np.ndarray:
    rows = np.arange(self.batch) % count
    return rows if self.ragged else np.zeros_like(rows)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Tokens fed in all, and the logits that came of it, one array a row."""

  what: str
  tokens: np.ndarray
  logits: tuple[np.ndarray | None, ...]


Outcomes = Iterator[Outcome]


def whole_chunks(subject: Subject, plan: Plan) -> Outcomes:
  """Every row advances by as many tokens."""
  state = run(subject, start(subject, plan.batch), plan, plan.tokens)
  yield Outcome('', plan.tokens, state.logits)


def ragged_rows(subject: Subject, plan: Plan) -> Outcomes:
  """Every row advances by its own number of tokens, none included."""
  rng = np.random.default_rng(plan.seed)
  state, most = start(subject, plan.batch), plan.chunk // plan.multiple
  while (state.seen < plan.length).any():
    counts = plan.multiple * rng.integers(0, most + 1, plan.batch)
    counts = np.minimum(counts, plan.length - state.seen)
    if counts.any():
      state = feed(subject, state, plan.tokens, counts)
  yield Outcome('', plan.tokens, state.logits)


def after_rewind(subject: Subject, plan: Plan) -> Outcomes:
  """After each call some tokens are fed that are then taken back."""
  drafts = np.roll(plan.tokens, 1, axis=0)[:, ::-1]
  state = start(subject, plan.batch)
  while (state.seen < plan.length).any():
    state = feed(subject, state, plan.tokens, _next(state, plan))
    drafted = feed(subject, state, drafts, plan.drafts)
    cache = change(drafted, subject.rewind, 'rewind', state.seen)
    state = dataclasses.replace(state, cache=cache)
  yield Outcome('', plan.tokens, state.logits)


def after_gather(subject: Subject, plan: Plan) -> Outcomes:
  """Half-way rows are reordered, one twice, and each goes its own way."""
  state = feed_to(subject, start(subject, plan.batch), plan, plan.middle)
  rows = np.roll(np.arange(plan.batch, dtype=np.int32), 1)
  rows[-1] = rows[0]
  cache = change(state, subject.take, 'take', rows)
  logits = tuple(state.logits[row] for row in rows)
  state = RunState(cache, state.seen[rows], logits)
  tokens = _follow(plan.tokens[rows], plan.tokens, state.seen)
  yield Outcome('', tokens, run(subject, state, plan, tokens).logits)


def after_fork(subject: Subject, plan: Plan) -> Outcomes:
  """Half-way the cache is forked; both go on, by turns and differently."""
  first = feed_to(subject, start(subject, plan.batch), plan, plan.middle)
  cache = change(first, subject.fork, 'fork')
  second = dataclasses.replace(first, cache=cache)
  other = _follow(plan.tokens, np.roll(plan.tokens, 1, axis=0), first.seen)
  while (first.seen < plan.length).any():
    counts = _next(first, plan)
    second = feed(subject, second, other, counts)
    first = feed(subject, first, plan.tokens, counts)
  yield Outcome('the original', plan.tokens, first.logits)
  yield Outcome('the copy', other, second.logits)


def run(
  subject: Subject, state: RunState, plan: Plan, tokens: np.ndarray
) -> RunState:
  """Returns the run at the end of the text, chunk by chunk."""
  ends = np.full(plan.batch, plan.length)
  return feed_to(subject, state, dataclasses.replace(plan, tokens=tokens), ends)


def feed_to(
  subject: Subject, state: RunState, plan: Plan, ends: np.ndarray
) -> RunState:
  """Returns the run after `ends [B]` tokens of each row."""
  while (state.seen < ends).any():
    counts = np.minimum(plan.chunk, ends - state.seen)
    state = feed(subject, state, plan.tokens, counts)
  return state


def _next(state: RunState, plan: Plan) -> np.ndarray:
  return np.minimum(plan.chunk, plan.length - state.seen)


def _follow(past: np.ndarray, future: np.ndarray, seen: np.ndarray):
  """Returns rows of `past` up to `seen [B]`, of `future` from there on."""
  steps = np.arange(past.shape[1])[None, :] < seen[:, None]
  steps = steps.reshape(steps.shape + (1,) * (past.ndim - 2))
  return np.where(steps, past, future)
