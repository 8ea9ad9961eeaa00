"""A bounded cache: the tokens that a score function would rather keep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.arguments import check_fields, is_whole
from kvjax.caches.array_spec import array_spec
from kvjax.caches.evidence import Evidence
from kvjax.caches.kind import Kind
from kvjax.caches.scores import HeavyHitters, Score
from kvjax.caches.slots import EMPTY, write_rows
from kvjax.renamed import SCORE_METHODS, check_methods

PREFILLS = ('whole', 'chunks')
LARGEST = float(jnp.finfo(jnp.float32).max)


@struct.dataclass
class BoundedBook:
  """Which token each slot holds, and what it has received.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, -1 where a slot holds none.
    total: float32 `[B, 1 | K, S]`, the statistic of the score function; None
      for a score that keeps none.
  """

  positions: jax.Array
  total: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Bounded(Kind):
  """Keeps `budget` tokens a row, chosen by a score function.

  A row has `budget + slack` slots, and nothing leaves before they are full.
  T new tokens for which slots are too few make room first: `budget - T` old
  ones stay, so that a query sees at most `budget` tokens, itself included, as
  with a window of that size. A call of more tokens is read whole, as a dense
  cache reads it; then `budget` of its tokens and the old ones stay. Rows and
  layers choose for themselves. Positions stay absolute: later queries are
  rotated where they are, not where the survivors end.

  Attributes:
    budget: most tokens a query sees, itself included, once slots are full.
    score: what is forgotten first.
    slack: slots beyond the budget. Room is made once in `slack + 1` steps. A
      call of at most that many tokens behind a prompt costs no old token. A
      longer one makes room for all of its tokens first, whatever the score.
    per_head: every kv head keeps its own tokens. Otherwise heads keep the
      tokens that they rank highest on average.
    protect: the first and the newest tokens of a row that never leave; None for
      (min(4, budget // 4), min(32, budget // 2)). (0, 0) leaves the choice to
      the score, which may protect some of its own accord.
    prefill: 'whole', or 'chunks': calls are read in pieces of `slack + 1`
      tokens, and before each piece at most `budget - 1` tokens stay. It needs
      less memory at a time, and other tokens survive.
  """

  budget: int = 0
  score: Score = HeavyHitters()
  slack: int = 0
  per_head: bool = True
  protect: tuple[int, int] | None = None
  prefill: str = 'whole'

  def __post_init__(self):
    check_methods(type(self.score), SCORE_METHODS)
    # A budget counts a query and at least one token to remember.
    check_fields(self, at_least={'budget': 2, 'slack': 0, 'slots': 1})
    if self.prefill not in PREFILLS:
      raise ValueError(
        f"Bounded prefill={self.prefill!r} must be 'whole' or 'chunks'."
      )
    self._check_protect()
    recent = getattr(self.score, 'recent', 0)
    if recent is not None and recent >= self.budget:
      raise ValueError(
        f'Bounded budget={self.budget} must exceed the recent={recent} '
        'tokens that its score never forgets.'
      )
    if self.score.of_prompt and self.prefill == 'chunks':
      raise ValueError(
        f'{self.score} ranks a prompt that is read whole, and '
        "prefill='chunks' reads it in pieces. Use prefill='whole'."
      )

  def _check_protect(self):
    if self.protect is None:
      return
    is_pair = isinstance(self.protect, tuple) and len(self.protect) == 2
    if not is_pair or not all(is_whole(n, 0) for n in self.protect):
      raise ValueError(
        f'Bounded protect={self.protect!r} must be two whole numbers, of first '
        'and of newest tokens, or None.'
      )
    first, last = self.protect
    if first + last > self.budget or first == self.budget:
      raise ValueError(
        f'Bounded budget={self.budget} cannot protect the first {first} and '
        f'the newest {last} tokens. Protect fewer, or give a larger budget.'
      )

  @property
  def protected(self) -> tuple[int, int]:
    """The first and the newest tokens that never leave."""
    default = min(4, self.budget // 4), min(32, self.budget // 2)
    return default if self.protect is None else self.protect

  @property
  def observes(self):
    return self.score.reads_queries

  @property
  def book_per_layer(self):
    return True

  def bind(self, capacity):
    del capacity
    score: Any = self.score
    # Not before: `dataclasses.replace` may still give another budget.
    if getattr(score, 'recent', 0) is None:
      score = dataclasses.replace(score, recent=self.budget // 2)
    slots = self.budget + self.slack
    return dataclasses.replace(self, slots=slots, score=score)

  @property
  def limit(self):
    return None

  @property
  def chunk(self):
    # The first tokens stay, so a longer call has to compete with the others.
    return self.piece or self.budget - self.protected[0]

  @property
  def piece(self):
    return self.slack + 1 if self.prefill == 'chunks' else None

  def book(self, batch, heads):
    shape = (batch, heads if self.per_head else 1, self.size)
    axes = ('batch', 'kv_heads', 'slots')
    total = None
    if self.score.keeps_statistic:
      total = array_spec(shape, jnp.float32, axes)
    return BoundedBook(array_spec(shape, jnp.int32, axes, EMPTY), total)

  def make_room(self, book, evidence, positions):
    count = jnp.sum(positions >= 0, axis=1, dtype=jnp.int32)
    live = _count_tokens(book.positions)
    if self.piece:
      stay = jnp.where(count > 0, self.budget - 1, live)
    else:
      fits = (live + count <= self.size) | (count > self.chunk)
      stay = jnp.where(fits, live, self.budget - count)
    surplus = (live - stay)[:, None, None]
    most = self.slack + min(1 if self.piece else positions.shape[1], self.chunk)
    priority = self._priority(evidence, count, jnp.inf)
    lowest = _lowest(priority, min(most, self.size))
    rank = jnp.arange(lowest.shape[-1], dtype=jnp.int32)[None, None, :]
    slots = jnp.where(rank < surplus, lowest, self.size + rank)
    empty = jnp.full(slots.shape, EMPTY, jnp.int32)
    return book.replace(positions=write_rows(book.positions, empty, slots))

  def place(self, book, length, positions):
    spread = book.positions.shape[:2] + positions.shape[1:]
    return self._fill(book, jnp.broadcast_to(positions[:, None], spread))

  def observe(self, book, evidence):
    return book.replace(total=self._statistic(evidence))

  def choose(self, book, evidence, positions):
    evidence = dataclasses.replace(evidence, total=self._statistic(evidence))
    priority = self._priority(evidence, 0, -jnp.inf)
    live = _count_tokens(evidence.positions)
    stay = jnp.where(live > self.size, self.budget, live)[:, None, None]
    rank = jnp.argsort(jnp.argsort(priority, axis=-1), axis=-1)
    stays = rank >= priority.shape[-1] - stay
    kept = jnp.where(stays, evidence.positions, EMPTY)
    old, new = jnp.split(kept, [self.size], axis=-1)
    book = book.replace(positions=old)
    book, slots = self._fill(book, new)
    if evidence.total is not None:
      old, new = jnp.split(evidence.total, [self.size], axis=-1)
      book = book.replace(total=write_rows(old, new, slots))
    return book, slots

  def _fill(self, book, positions):
    """Gives tokens `[B, 1 | K, T]` the first empty slots; -1 for no token.

    So the tokens of a row are in its lowest slots at first, and attention reads
    no further than their number.
    """
    index = jnp.arange(self.size, dtype=jnp.int32)[None, None, :]
    empty = jnp.where(book.positions == EMPTY, index, self.size)
    slots = _lowest(empty, min(positions.shape[2], self.size))
    is_token = positions >= 0
    order = jnp.cumsum(is_token, axis=-1, dtype=jnp.int32) - 1
    order = jnp.clip(order, 0, slots.shape[2] - 1)
    slots = jnp.take_along_axis(slots, order, axis=-1)
    slots = jnp.where(is_token, slots, self.outside(positions))
    return book.replace(
      positions=write_rows(book.positions, positions, slots)
    ), slots

  def _statistic(self, evidence: Evidence) -> jax.Array | None:
    """Returns the statistic after a call; that of a row without tokens stays.

    A slot may have changed hands: its new token starts from 0, not from what
    the old token had received.
    """
    if evidence.total is None:
      return None
    total = jnp.where(evidence.is_new, 0.0, evidence.total)
    new: Any = self.score.statistic(dataclasses.replace(evidence, total=total))
    # The select also makes the result depend on the old statistic, even for a
    # score that starts anew; without that XLA would not write a donated leaf in
    # place.
    has_new = (evidence.length > evidence.before)[:, None, None]
    return jnp.where(evidence.is_token & has_new, self._by_book(new), total)

  def _priority(
    self, evidence: Evidence, count: Any, of_empty: float
  ) -> jax.Array:
    """Returns `[B, 1 | K, S]`, infinite for tokens that must stay.

    Args:
      evidence: of the slots.
      count: int32 `[B]`, tokens about to come, which will be the newest.
      of_empty: priority of a slot without a token.
    """
    priority = self._by_book(self.score.priority(evidence))
    first, last = self.protected
    age = evidence.age + jnp.reshape(count, (-1, 1, 1))
    is_protected = (evidence.positions < first) | (age < last)
    # What the score itself would never forget goes before what is protected.
    priority = jnp.minimum(priority.astype(jnp.float32), LARGEST)
    priority = jnp.where(is_protected, jnp.inf, priority)
    return jnp.where(evidence.is_token, priority, of_empty)

  def _by_book(self, x: jax.Array) -> jax.Array:
    """Returns `[B, 1 | K, S]` with the heads of the book; one is their mean."""
    return x if self.per_head else x.mean(axis=1, keepdims=True)

  def shortest_rewind(self, book, length):
    # The book does not say what was forgotten, and scores cannot be undone.
    return length


def _count_tokens(positions: jax.Array) -> jax.Array:
  """Returns int32 `[B]`: tokens of a row. Every head keeps as many.

  XLA:CPU stores every number that a long sum adds, and none of a short one.
  """
  is_token = positions[:, 0] != EMPTY
  is_token = jnp.pad(is_token, ((0, 0), (0, -is_token.shape[1] % 32)))
  is_token = is_token.reshape(len(is_token), -1, 32)
  counts = is_token.sum(axis=2, dtype=jnp.int32)
  counts = jax.lax.optimization_barrier(counts)  # or it is one sum again
  return counts.sum(axis=1, dtype=jnp.int32)


def _lowest(x: jax.Array, count: int) -> jax.Array:
  """Returns int32 `[B, K, count]`: slots of the lowest of `x [B, K, S]`."""
  if count == 1:  # top_k would sort all slots
    return jnp.argmin(x, axis=-1, keepdims=True).astype(jnp.int32)
  return jax.lax.top_k(-x, count)[1]
