"""What one trained model says of caches; each finding is a flat record."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compare.evaluate import (
  assert_equal_logits,
  bits_per_byte,
  logits_through_cache,
)
from experiments.measuring.separation import separate
from experiments.training.footprint import (
  bytes_per_token,
  query_bytes_per_token,
  stream_bytes,
)
from experiments.training.variants import num_params
from kvjax.caches.bounded import Bounded
from kvjax.caches.kind import Kind
from kvjax.caches.ring import Ring
from kvjax.caches.scores import HeavyHitters
from kvjax.caches.sinks import Sinks
from kvjax.decoding.allocate import init_cache
from kvjax.models.config import ModelConfig
from kvjax.models.uncached import forward
from kvjax.streams.codecs import Codec, Int8

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
  """How a trained model is examined.

  Attributes:
    rows: held-out windows.
    budget: slots of ring, sinks and bounded: what they may remember.
    sinks: of those, the first tokens that sinks never forgets.
    past: tokens before the boundary at which the past becomes noise.
    tolerance: cached against uncached, relative to the largest logit.
  """

  rows: int
  budget: int
  sinks: int
  past: int
  tolerance: float

  def __post_init__(self):
    if not 0 < self.sinks < self.budget:
      raise ValueError(
        f'sinks={self.sinks} must lie between 1 and budget={self.budget} - 1.'
      )
    if self.rows < 1 or self.past < 1:
      raise ValueError(
        f'rows={self.rows} and past={self.past} must be at least 1.'
      )

  def caches(self) -> dict[str, tuple[Kind | None, Codec | None]]:
    """Returns kind and codec of each cache the text is read through."""
    recent = Sinks(sinks=self.sinks, window=self.budget - self.sinks)
    score = HeavyHitters(recent=self.budget // 2)
    return {
      'dense': (None, None),
      'int8': (None, Int8()),
      'ring': (Ring(window=self.budget), None),
      'sinks': (recent, None),
      'bounded': (Bounded(budget=self.budget, score=score), None),
    }


def sizes(models: Mapping[str, ModelConfig]) -> Iterator[Record]:
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
  study: Study, config: ModelConfig, params: Mapping[str, Any], tokens: Any
) -> Iterator[Record]:
  """Yields held-out bits per byte through each cache beside its bytes.

  The dense cache is also held against the uncached model, logit by logit.

  Args:
    study: how.
    config, params: the model.
    tokens: int32 `[B, T]` of held-out text.

  Raises:
    AssertionError: cached and uncached logits part, or a cache occupies other
      bytes than its config promised.
  """
  uncached = forward(config, params, tokens)
  bits = bits_per_byte(uncached, tokens)
  for name, (kind, codec) in study.caches().items():
    logits = logits_through_cache(
      config, params, tokens, kind=kind, codec=codec
    )
    found = {
      'record': 'quality',
      'cache': name,
      'bits': bits_per_byte(logits, tokens),
    }
    if name == 'dense':
      found['difference'] = assert_equal_logits(
        logits, uncached, study.tolerance
      )
      found['largest_logit'] = float(jnp.max(jnp.abs(uncached)))
    yield found | {
      'uncached_bits': bits,
      **footprint(config, tokens.shape, kind, codec),
    }


def footprint(
  config: ModelConfig,
  shape: tuple[int, int],
  kind: Kind | None,
  codec: Codec | None,
) -> Record:
  """Returns bytes of a cache of `shape` rows and tokens, really allocated.

  Raises:
    AssertionError: they are not what the config promises.
  """
  rows, tokens = shape
  cache = init_cache(config, rows, tokens, kinds=kind, codec=codec)
  slots = sum(m.kind.size for m in cache.layout.stores if m is not None)
  allocated, promised = stream_bytes(cache), bytes_per_token(config, codec)
  predicted = promised * rows * slots // len(config.layers)
  if allocated != predicted:
    raise AssertionError(
      f'The cache occupies {allocated} bytes; its config promised {predicted}.'
    )
  return {
    'context': tokens,
    'bytes_per_token': promised,
    'held_per_token': allocated / rows / tokens,
    'predicted_bytes': predicted,
    'allocated_bytes': allocated,
    'query_bytes': query_bytes_per_token(config) * rows * tokens,
  }


def separation(
  study: Study,
  config: ModelConfig,
  params: Mapping[str, Any],
  tokens: np.ndarray,
  seed: int,
) -> Record:
  """Returns what noise on each part of the past does to the next logits.

  Args:
    study: how.
    config, params: the model.
    tokens: int32 `[B, T]` of held-out text; the first row's beginning is used.
    seed: of the noise.
  """
  text = jnp.asarray(tokens[:1, : study.past + 1])
  verdict = separate(config, params, text, jax.random.key(seed))
  return {
    'record': 'separation',
    'past': text.shape[1] - 1,
    'queries': float(verdict.queries),
    'past_rows': float(verdict.past_rows),
    'naive': float(verdict.naive),
    'naive_by': float(verdict.naive_by),
    'kept_rows': verdict.kept.size,
    'kept_changed': int(jnp.sum(verdict.kept > 0)),
    'kept_faint': int(jnp.sum(verdict.faint)),
    'kept_least': float(jnp.min(verdict.kept)),
    'kept_most': float(jnp.max(verdict.kept)),
  }
