"""Scores of what tokens stored: keys and values, without any query.

While decoding, they rank all live slots anew whenever room is made, in order of
position. Reading them costs a second pass over the keys, block by block.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kvjax.arguments import check_fields
from kvjax.caches.evidence import BLOCK, Evidence
from kvjax.caches.scores import Score


@dataclasses.dataclass(frozen=True)
class KeyNorm(Score):
  """Keys of small norm stay (arXiv 2406.11430; kvpress, `KnormPress`)."""

  def priority(self, evidence):
    return evidence.for_each(lambda keys, _: -jnp.linalg.norm(keys, axis=-1))


@dataclasses.dataclass(frozen=True)
class KeyDiff(Score):
  """Keys unlike the mean direction stay (arXiv 2504.15364; `KeyDiffPress`)."""

  def priority(self, evidence):
    total = evidence.total_of(
      lambda keys, _: (keys / _length(keys)).sum(axis=2, keepdims=True)
    )
    mean = total / _length(total)
    return evidence.for_each(
      lambda keys, _: -(keys * mean).sum(axis=-1) / _length(keys)[..., 0]
    )


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
    slots = evidence.positions.shape[-1]
    size = self.window * max(BLOCK // self.window, 1)
    count = -(-slots // size)

    def body(i, shares):
      streams = evidence.in_order(i * size, size)
      keys, values = (self._shares(x) for x in streams)
      return jax.lax.dynamic_update_slice_in_dim(
        shares, keys * values, i * size, axis=2
      )

    first = jax.eval_shape(lambda: evidence.in_order(0, size)[0])
    shares = jnp.zeros(first.shape[:2] + (count * size,), jnp.float32)
    shares = jax.lax.fori_loop(0, count, body, shares)
    shares = evidence.by_slot(shares[..., :slots])
    shares = shares / shares.sum(axis=-1, keepdims=True)
    is_sink = evidence.positions < self.sinks
    return jnp.where(is_sink, jnp.inf, shares)

  @property
  def reads_queries(self):
    return False

  def _shares(self, x: jax.Array) -> jax.Array:
    """Returns `[B, K, S]`: what each of `[B, K, S, H]` has of its window."""
    squares = (x * x).sum(axis=-1)
    windows = squares.reshape(squares.shape[:2] + (-1, self.window))
    total = windows.sum(axis=-1, keepdims=True)
    return (windows / jnp.where(total > 0, total, 1.0)).reshape(squares.shape)


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
    slots = evidence.positions.shape[-1]
    ranks = self._ranks(evidence, max(-(-(slots - self.sinks) // self.lag), 1))
    index = jnp.arange(slots, dtype=jnp.int32)[None, None]
    after = index - self.sinks  # the sinks
    ranks = jnp.pad(ranks, ((0, 0), (0, 0), (self.sinks, 0)))[..., :slots]
    count = evidence.is_token.sum(axis=-1, keepdims=True) - self.sinks
    parts = count // self.lag
    scored = jnp.where(after // self.lag < parts - 1, ranks, 1.0)
    recency = after / jnp.maximum(count, 1)
    scores = jnp.where(parts < 2, recency, scored)
    return evidence.by_slot(jnp.where(after < 0, jnp.inf, scores))

  def _ranks(self, evidence: Evidence, parts: int) -> jax.Array:
    """Returns `[B, K, parts lag]`, of use where the next part is complete."""

    def body(i, carry):
      ranks, part = carry
      following = evidence.in_order(self.sinks + (i + 1) * self.lag, self.lag)
      keys, values = jax.tree.map(_spread, part, following)
      order = jnp.argsort((keys + values) / 2, axis=-1)
      rank = jnp.argsort(order, axis=-1) / self.lag
      ranks = jax.lax.dynamic_update_slice_in_dim(
        ranks, rank, i * self.lag, axis=2
      )
      return ranks, following

    first = evidence.in_order(self.sinks, self.lag)
    ranks = jnp.zeros(first[0].shape[:2] + (parts * self.lag,), jnp.float32)
    return jax.lax.fori_loop(0, parts, body, (ranks, first))[0]


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


def _spread(part: jax.Array, following: jax.Array) -> jax.Array:
  """Returns `[B, K, lag]` of a part's tokens `[B, K, lag, H]`, sum 1."""
  low = following.min(axis=2, keepdims=True)
  width = following.max(axis=2, keepdims=True) - low
  place = (part - low) / jnp.where(width > 0, width, 1.0)
  return jax.nn.softmax(place.std(axis=-1, ddof=1), axis=-1)


def _length(x: jax.Array) -> jax.Array:
  return jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
