"""Scores of what tokens stored: keys and values, without any query.

While decoding, they rank all live slots anew whenever room is made, in order of
position. Reading them costs a second pass over the keys.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.evidence import Evidence
from kvjax.caches.scores import Score


@dataclasses.dataclass(frozen=True)
class KeyNorm(Score):
  """Keys of small norm stay (arXiv 2406.11430; kvpress, `KnormPress`)."""

  def priority(self, evidence):
    return -jnp.linalg.norm(evidence.keys(), axis=-1)


@dataclasses.dataclass(frozen=True)
class KeyDiff(Score):
  """Keys unlike the mean direction stay (arXiv 2504.15364; `KeyDiffPress`)."""

  def priority(self, evidence):
    keys = evidence.keys()
    length = _length(keys)
    mean = (keys / length).sum(axis=2, keepdims=True)
    return -(keys * (mean / _length(mean))).sum(axis=-1) / length[..., 0]


@dataclasses.dataclass(frozen=True)
class CUR(Score):
  """Squared norms of keys and values, by local windows (arXiv 2509.15038).

  The product of what a token has of the sum of its window (kvpress 0.5.5,
  `CURPress`).

  Attributes:
    sinks: first tokens, which stay.
    window: neighbouring tokens among which norms are shares. It counts tokens
      of the cache, and no queries.
  """

  sinks: int = 4
  window: int = 16

  def __post_init__(self):
    check_fields(self, at_least={'sinks': 0, 'window': 1})

  def priority(self, evidence):
    shares = self._shares(evidence, evidence.keys())
    shares = shares * self._shares(evidence, evidence.values())
    shares = shares / shares.sum(axis=-1, keepdims=True)
    is_sink = evidence.positions < self.sinks
    return jnp.where(is_sink, jnp.inf, shares)

  @property
  def reads_queries(self):
    return False

  def _shares(self, evidence: Evidence, x: jax.Array) -> jax.Array:
    squares = evidence.by_position((x * x).sum(axis=-1))
    slots = squares.shape[-1]
    pad = -slots % self.window
    windows = jnp.pad(squares, ((0, 0), (0, 0), (0, pad)))
    windows = windows.reshape(*squares.shape[:2], -1, self.window)
    total = windows.sum(axis=-1, keepdims=True)
    shares = windows / jnp.where(total > 0, total, 1.0)
    shares = shares.reshape(*squares.shape[:2], -1)[..., :slots]
    return evidence.by_slot(shares)


@dataclasses.dataclass(frozen=True)
class LagKV(Score):
  """Spread within the range of the tokens that follow (arXiv 2504.04704).

  Tokens after the sinks are cut into parts of `lag`. Each part but the last
  complete one is scored by where its features lie in the range of the next
  part, and ranked in itself; what is behind stays (kvpress 0.5.5,
  `LagKVPress`). With fewer than two parts the oldest goes first.

  Attributes:
    sinks: first tokens, which stay.
    lag: tokens of a part.
  """

  sinks: int = 4
  lag: int = 128

  def __post_init__(self):
    check_fields(self, at_least={'sinks': 0, 'lag': 2})

  def priority(self, evidence):
    spread = self._spread(evidence, evidence.keys())
    spread = (spread + self._spread(evidence, evidence.values())) / 2
    ranks = jnp.argsort(jnp.argsort(spread, axis=-1), axis=-1) / self.lag
    ranks = ranks.reshape(*ranks.shape[:2], -1)
    slots = evidence.positions.shape[-1]
    index = jnp.arange(slots, dtype=jnp.int32)[None, None]
    after = index - self.sinks  # the sinks
    ranks = jnp.pad(ranks, ((0, 0), (0, 0), (self.sinks, 0)))[..., :slots]
    count = evidence.is_token.sum(axis=-1, keepdims=True) - self.sinks
    parts = count // self.lag
    scored = jnp.where(after // self.lag < parts - 1, ranks, 1.0)
    recency = after / jnp.maximum(count, 1)
    scores = jnp.where(parts < 2, recency, scored)
    return evidence.by_slot(jnp.where(after < 0, jnp.inf, scores))

  def _spread(self, evidence: Evidence, x: jax.Array) -> jax.Array:
    """Returns `[B, K, parts, lag]`, of use where the next part is complete."""
    x = evidence.by_position(x)[:, :, self.sinks :]
    pad = -x.shape[2] % self.lag
    x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0)))
    x = x.reshape(*x.shape[:2], -1, self.lag, x.shape[-1])
    following = jnp.roll(x, -1, axis=2)
    low = following.min(axis=3, keepdims=True)
    width = following.max(axis=3, keepdims=True) - low
    place = (x - low) / jnp.where(width > 0, width, 1.0)
    return jax.nn.softmax(place.std(axis=-1, ddof=1), axis=-1)


@dataclasses.dataclass(frozen=True)
class Random(Score):
  """Each token of each kv head draws its rank once: what any score must beat.

  The draw depends on the seed, the position and the head alone. Layers of one
  seed keep the same tokens, so give each layer a kind with its own seed.

  Attributes:
    seed: of the draws.
  """

  seed: int = 0

  def __post_init__(self):
    check_fields(self, at_least={'seed': 0})

  def priority(self, evidence):
    heads = jnp.arange(evidence.positions.shape[1], dtype=jnp.uint32)
    x = evidence.positions.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    x += heads[None, :, None] * jnp.uint32(0x7F4A7C15) + jnp.uint32(self.seed)
    for factor in (0x85EBCA6B, 0xC2B2AE35):  # MurmurHash3's finalizer, twice
      x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(factor)
      x ^= x >> jnp.uint32(13)
    return (x >> jnp.uint32(8)).astype(jnp.float32)  # 24 bits are exact


def _length(x: jax.Array) -> jax.Array:
  return jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
