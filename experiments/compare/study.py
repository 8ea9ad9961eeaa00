"""Measures caches with one trained model; each finding is a flat record."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

import kvjax
from experiments.measuring.separation import separate
from experiments.measuring.teacher_forcing import feed
from experiments.training.step import next_token_loss, to_bits
from experiments.training.variants import array_bytes, num_params
from kvjax.decoding.allocate import check_sizes
from kvjax.memory.planning import plan

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
  """How a trained model is examined.

  Attributes:
    rows: held-out windows.
    budget: slots of ring, sinks and bounded: what they may remember.
    sinks: how many of these keep the first tokens for good.
    past: tokens before the boundary at which the past becomes noise.
    tolerance: of cached against uncached logits, relative to the largest.
  """

  rows: int
  budget: int
  sinks: int
  past: int
  tolerance: float

  def __post_init__(self):
    if not 0 < self.sinks < self.budget:
      raise ValueError(
        f'sinks={self.sinks} must be between 1 and budget={self.budget} - 1.'
      )
    check_sizes(rows=self.rows, past=self.past)

  def caches(self) -> dict[str, dict[str, Any]]:
    """Returns options of each cache that the text is read through."""
    recent = kvjax.Sinks(sinks=self.sinks, window=self.budget - self.sinks)
    score = kvjax.HeavyHitters(recent=self.budget // 2)
    return {
      'dense': {},
      'int8': {'codec': kvjax.Int8()},
      'ring': {'kinds': kvjax.Ring(window=self.budget)},
      'sinks': {'kinds': recent},
      'bounded': {'kinds': kvjax.Bounded(budget=self.budget, score=score)},
    }


def sizes(models: Mapping[str, kvjax.ModelConfig]) -> Iterator[Record]:
  """Yields parameters of each model, and how far from the first it is."""
  counts = {name: num_params(config) for name, config in models.items()}
  first = next(iter(counts.values()))
  for name, config in models.items():
    yield {
      'record': 'model',
      'variant': name,
      'parameters': counts[name],
      'apart': counts[name] / first - 1,
      'hidden': getattr(config.layers[0].mlp, 'hidden', None),
    }


def quality(
  study: Study, config: kvjax.ModelConfig, params: Any, tokens: Any
) -> Iterator[Record]:
  """Yields held-out bits per byte through each cache, and bytes of the cache.

  Logits through the dense cache are compared with those of the uncached model.

  Args:
    study: how.
    config, params: the model.
    tokens: int32 `[B, T]` of held-out text.

  Raises:
    AssertionError: cached and uncached logits differ.
  """
  uncached = kvjax.forward(config, params, tokens)
  uncached_bits = bits_per_byte(uncached, tokens)
  for name, options in study.caches().items():
    cache = kvjax.init_cache(config, *tokens.shape, **options)
    sizes = footprint(config, cache, tokens.shape, options)
    logits, _ = feed(config, params, cache, tokens)
    record: Record = {'record': 'quality', 'cache': name}
    record['bits'] = bits_per_byte(logits, tokens)
    if name == 'dense':
      record['difference'] = assert_equal_logits(
        logits, uncached, study.tolerance
      )
      record['largest_logit'] = float(jnp.max(jnp.abs(uncached)))
    yield record | {'uncached_bits': uncached_bits} | sizes


def bits_per_byte(logits: jax.Array, tokens: jax.Array) -> float:
  """Returns the mean of `-log2 p(byte | bytes before)` over all but the first.

  Args:
    logits: float32 `[B, T, V]`, after each token.
    tokens: int32 `[B, T]`.
  """
  return float(to_bits(jnp.mean(next_token_loss(logits, tokens))))


def assert_equal_logits(
  cached: jax.Array, uncached: jax.Array, relative: float
) -> float:
  """Returns the largest difference; raises beyond `relative` times the largest.

  Raises:
    AssertionError: cached and uncached logits differ by more.
  """
  scale = float(jnp.max(jnp.abs(uncached)))
  chex.assert_trees_all_close(cached, uncached, rtol=0.0, atol=relative * scale)
  return float(jnp.max(jnp.abs(cached - uncached)))


def footprint(config: kvjax.ModelConfig, cache, shape, options) -> Record:
  """Returns bytes of a cache of `shape` rows and tokens: promised, allocated.

  What it needs for positions and books does not count.
  """
  rows, tokens = shape
  promised = plan(config, batch_size=rows, capacity=tokens, **options)
  slots = sum(m.kind.size for m in cache.layout.stores if m is not None)
  a_slot = promised.bytes_per_token // len(config.layers)
  allocated = array_bytes(cache.stores)
  return {
    'context': tokens,
    'bytes_per_token': promised.bytes_per_token,
    'held_per_token': allocated / rows / tokens,
    'predicted_bytes': a_slot * rows * slots,
    'allocated_bytes': allocated,
    'query_bytes': promised.query_cache_bytes,
  }


def separation(
  study: Study, config: kvjax.ModelConfig, params: Any, tokens: Any, seed: int
) -> Record:
  """Returns what noise on each part of the past does to the next logits.

  Args:
    study: how.
    config, params: the model.
    tokens: int32 `[B, T]` of held-out text; the first row's beginning is used.
    seed: of the noise.
  """
  text = jnp.asarray(tokens[:1, : study.past + 1])
  verdict = separate(config, params, text, seed)
  changes = ('queries', 'past_rows', 'naive', 'naive_by')
  return {
    'record': 'separation',
    'past': text.shape[1] - 1,
    **{name: float(getattr(verdict, name)) for name in changes},
    'kept_rows': verdict.kept.size,
    'kept_changed': int(jnp.sum(verdict.kept > 0)),
    'kept_faint': int(jnp.sum(verdict.faint)),
    'kept_least': float(jnp.min(verdict.kept)),
    'kept_most': float(jnp.max(verdict.kept)),
  }
