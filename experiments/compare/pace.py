"""Seconds a token, cached and uncached, as the context grows."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.decoding.allocate import check_sizes


@dataclasses.dataclass(frozen=True)
class Timing:
  """How time is taken.

  Attributes:
    contexts: increasing numbers of tokens, of one row.
    steps: decode steps of one measurement, which is their mean.
    repeats: measurements a context, after one that is thrown away.
  """

  contexts: tuple[int, ...]
  steps: int
  repeats: int

  def __post_init__(self):
    increasing = sorted(set(self.contexts)) == list(self.contexts)
    if not increasing or not self.contexts or self.contexts[0] < 1:
      raise ValueError(
        f'contexts={tuple(self.contexts)} must be positive and increase.'
      )
    check_sizes(**{'pace.steps': self.steps, 'pace.repeats': self.repeats})


def measure_pace(
  timing: Timing, config: kvjax.ModelConfig, params: Any
) -> Iterator[dict[str, Any]]:
  """Yields a record a context: median seconds a token, cached and uncached.

  Cached is a greedy decode step after the context, uncached a forward pass of
  the whole context: without a cache each token takes one.
  """
  # One capacity for all contexts: every cached step is the same program.
  room = timing.contexts[-1] + (timing.repeats + 1) * timing.steps
  for context in timing.contexts:
    cache = _decode(config, params, kvjax.init_cache(config, 1, room), context)
    tokens = _tokens(config, context)
    cached, uncached = [], []
    for _ in range(timing.repeats + 1):
      start = time.perf_counter()
      cache = _decode(config, params, cache, timing.steps)
      cached.append((time.perf_counter() - start) / timing.steps)
    for _ in range(timing.repeats + 1):
      start = time.perf_counter()
      jax.block_until_ready(kvjax.forward(config, params, tokens))
      uncached.append(time.perf_counter() - start)
    yield {
      'record': 'pace',
      'context': context,
      # The first measurement of each includes compilation.
      'cached': statistics.median(cached[1:]),
      'uncached': statistics.median(uncached[1:]),
    }


def _decode(
  config: kvjax.ModelConfig, params: Any, cache: kvjax.Cache, steps: int
) -> kvjax.Cache:
  """Returns the cache after greedy steps, once they are computed."""
  token = _tokens(config, 1)[:, 0]
  for _ in range(steps):
    logits, cache = kvjax.decode_step(config, params, cache, token)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  jax.block_until_ready((token, cache.length))
  return cache


def _tokens(config: kvjax.ModelConfig, count: int) -> jax.Array:
  ids = np.arange(count) * 31 % config.vocab_size
  return jnp.asarray(ids[None, :], jnp.int32)
