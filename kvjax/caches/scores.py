"""Score functions: what a bounded cache forgets first.

`Score` is the interface; those here rank by what attention weighed, and by
positions. `kvjax/caches/key_scores.py` has those that look at keys and values.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.evidence import Evidence
from kvjax.renamed import SCORE_METHODS, check_methods


class Score(abc.ABC):
  """Ranks the tokens of a bounded cache. Frozen and hashable.

  Attributes:
    window: newest queries of a call whose weights `Evidence.weights` sums. 0
      for a score that does not call it, None for all queries.
    of_prompt: the score ranks a prompt that is read whole, and cannot rank it
      piece by piece.
  """

  window: Any = 0  # int or None; a class or a field may say it
  of_prompt: bool = False

  def __init_subclass__(cls, **options: object):
    super().__init_subclass__(**options)
    check_methods(cls, SCORE_METHODS)

  @property
  def keeps_statistic(self) -> bool:
    """Whether a number for each slot is kept from call to call."""
    return type(self).statistic is not Score.statistic

  @property
  def reads_queries(self) -> bool:
    """Whether the score needs queries, which no cache keeps."""
    return self.window != 0

  def statistic(self, evidence: Evidence) -> jax.Array | None:
    """Returns the statistic `[B, 1 | K, S]` after the call of the evidence.

    Called once a call, after attention. The base class keeps none.
    """
    del evidence

  @abc.abstractmethod
  def priority(self, evidence: Evidence) -> jax.Array:
    """Returns `[B, 1 | K, S]`; the lowest is forgotten first.

    Called when room is made for new tokens, without any query, and when a long
    call was read, with `evidence.total` as `statistic` returned it.
    """


@dataclasses.dataclass(frozen=True)
class HeavyHitters(Score):
  """Attention mass received so far (H2O, arXiv 2306.14048, algorithm 1).

  While decoding, every step adds the weights of its queries. The sum favours
  old tokens, which more queries could see; `ObservedAttention` divides by their
  number. On one text it stays a little nearer to the full cache (SmolLM2-135M,
  128 of 512 tokens: a KL of .079 against .086).

  Attributes:
    recent: newest tokens that are never forgotten; below the budget. None for
      half the budget of the cache, as in the paper: with 0, and with
      `Bounded(protect=(0, 0))`, a new token goes first, because it has received
      little yet (a SmolLM2 of 135M parameters then reads a text at perplexity
      190 instead of 24).
  """

  recent: int | None = None
  window = None

  def __post_init__(self):
    check_fields(self, at_least={'recent': 0})

  def statistic(self, evidence):
    return evidence.total + evidence.weights()

  def priority(self, evidence):
    is_recent = evidence.age < (self.recent or 0)
    return jnp.where(is_recent, jnp.inf, evidence.total)


@dataclasses.dataclass(frozen=True)
class ObservedAttention(Score):
  """Attention received, divided by the queries that could see the token.

  The mean of H2O's sum, as kvpress 0.5.5 ranks (`ObservedAttentionPress`).
  While decoding, every step adds the weights of its queries.
  """

  window = None

  def statistic(self, evidence):
    return evidence.total + evidence.weights()

  def priority(self, evidence):
    return evidence.total / (evidence.age + 1).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class LastQuery(Score):
  """Attention of the newest query alone, each kv head by itself.

  It never forgets the newest token. While decoding, each step ranks anew.
  """

  window = 1

  def statistic(self, evidence):
    return evidence.weights()

  def priority(self, evidence):
    return jnp.where(evidence.age == 0, jnp.inf, evidence.total)


@dataclasses.dataclass(frozen=True)
class TOVA(LastQuery):
  """Attention of the newest query, mean of all heads (arXiv 2401.06104).

  All kv heads keep the same tokens. `LastQuery` lets each head choose.
  """

  def statistic(self, evidence):
    return evidence.weights().mean(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Recency(Score):
  """The oldest goes first: a ring by another name, and its oracle."""

  def priority(self, evidence):
    return -evidence.age.astype(jnp.float32)


class PromptScore(Score):
  """Ranks the tokens of a prompt once, from its queries.

  While decoding, a token of the prompt keeps its score, and tokens that came
  later go after all of the prompt's, the oldest first.
  """

  of_prompt = True

  @property
  def reads_queries(self):
    return True

  @abc.abstractmethod
  def prompt_score(self, evidence: Evidence) -> jax.Array:
    """Returns `[B, K, S]`, at least 0; infinite for tokens that must stay."""

  def statistic(self, evidence):
    later = jnp.where(evidence.is_new, jnp.inf, evidence.total)
    if evidence.tokens == 1:  # a step: its queries need not be read
      return later
    score = self.prompt_score(evidence)
    # At most 1, so that any later token outranks it.
    is_finite = evidence.is_token & (score < jnp.inf)
    top = jnp.max(jnp.where(is_finite, score, 0.0), axis=-1, keepdims=True)
    score = score / jnp.where(top > 0, top, 1.0)
    return jnp.where(evidence.is_prompt[:, None, None], score, later)

  def priority(self, evidence):
    later = (2 + evidence.positions).astype(jnp.float32)
    return jnp.where(evidence.total < jnp.inf, evidence.total, later)


@dataclasses.dataclass(frozen=True)
class SnapKV(PromptScore):
  """What the newest queries of the prompt weighed (arXiv 2404.14469).

  Weights of the last `window` queries, averaged over neighbouring tokens; the
  window itself stays (kvpress 0.5.5, `SnapKVPress`).

  Attributes:
    window: queries at the end of the prompt, whose own tokens stay.
    pool: neighbouring tokens that share a score; odd.
  """

  window: int = 32
  pool: int = 5

  def __post_init__(self):
    check_fields(self, at_least={'window': 1, 'pool': 1})
    if self.pool % 2 == 0:
      raise ValueError(
        f'SnapKV pool={self.pool} must be odd: a token and as many neighbours '
        'on each side.'
      )

  def prompt_score(self, evidence):
    in_window = evidence.age < self.window
    weights = jnp.where(in_window, 0.0, evidence.weights())
    pooled = _pool(evidence.by_position(weights), self.pool)
    return jnp.where(in_window, jnp.inf, evidence.by_slot(pooled))


@dataclasses.dataclass(frozen=True)
class ExpectedAttention(PromptScore):
  """Attention that future queries are expected to pay (arXiv 2510.00636).

  Queries are taken as normal, with the mean and covariance of the prompt's
  unrotated queries, rotated by the mean rotation of the next positions:
  `softmax(k.mu + k.C.k / 2) |v|`, mean over the queries of a kv head (kvpress
  0.5.5, `ExpectedAttentionPress`).

  Attributes:
    future: positions after the prompt over which rotations are averaged.
    sinks: first tokens, which always stay and are left out of the statistics.
  """

  future: int = 512
  sinks: int = 4

  def __post_init__(self):
    check_fields(self, at_least={'future': 1, 'sinks': 0})

  def prompt_score(self, evidence):
    mean, spread = self._queries(evidence)

    def of_block(keys, values):
      linear = _product('BKGH,BKSH->BKGS', mean, keys)
      square = _product('BKSH,BKGHJ->BKGSJ', keys, spread)
      square = (square * keys[:, :, None]).sum(axis=-1)
      return linear + square / 2, jnp.linalg.norm(values, axis=-1)

    scores, norms = evidence.for_each(of_block)
    ranked = (evidence.positions >= self.sinks)[:, :, None]
    weights = jax.nn.softmax(scores, axis=-1, where=ranked)
    return weights.mean(axis=2) * norms

  def _queries(self, evidence: Evidence) -> tuple[jax.Array, jax.Array]:
    """Returns mean `[B, K, G, H]` and covariance `[B, K, G, H, H]`."""

    def counts(positions):
      return (positions >= self.sinks)[:, None, None, :, None]

    def total(queries, positions):
      is_counted = counts(positions)
      return (
        jnp.where(is_counted, queries, 0.0).sum(axis=3),
        is_counted.sum(axis=3, dtype=jnp.float32),
      )

    mean, count = evidence.total_of_queries(total, self.future)
    count = jnp.maximum(count, 1)
    mean = mean / count

    def square(queries, positions):
      centred = queries - mean[:, :, :, None]
      centred = jnp.where(counts(positions), centred, 0.0)
      return _product('BKGTH,BKGTJ->BKGHJ', centred, centred)

    spread = evidence.total_of_queries(square, self.future)
    return mean, spread / count[..., None]

  def priority(self, evidence):
    is_sink = evidence.positions < self.sinks
    return jnp.where(is_sink, jnp.inf, super().priority(evidence))


def _product(formula: str, *arrays: jax.Array) -> jax.Array:
  highest = jax.lax.Precision.HIGHEST
  return jnp.einsum(formula, *arrays, precision=highest)


def _pool(x: jax.Array, size: int) -> jax.Array:
  """Returns the mean of `size` neighbours along the last axis, 0 beyond it."""
  window = (1,) * (x.ndim - 1) + (size,)
  strides = (1,) * x.ndim
  total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, 'SAME')
  return total / math.prod(window)
