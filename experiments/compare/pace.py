"""Seconds a token, cached and uncached, as the context grows."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.decoding.allocate import init_cache
from kvjax.decoding.steps import decode_step
from kvjax.models.config import ModelConfig
from kvjax.models.uncached import forward


def measure(
  config: ModelConfig,
  params: Mapping[str, Any],
  *,
  contexts: Sequence[int],
  steps: int,
  repeats: int,
) -> list[dict[str, Any]]:
  """Returns a record a context: seconds a token, cached and uncached."""
  cached = cached_seconds(
    config, params, contexts, steps=steps, repeats=repeats
  )
  uncached = uncached_seconds(config, params, contexts, repeats=repeats)
  return [
    {
      'record': 'pace',
      'context': c,
      'cached': cached[c],
      'uncached': uncached[c],
    }
    for c in contexts
  ]


def cached_seconds(
  config: ModelConfig,
  params: Mapping[str, Any],
  contexts: Sequence[int],
  *,
  steps: int,
  repeats: int,
) -> dict[int, float]:
  """Returns median seconds of a greedy decode step after each context.

  Args:
    config: the model.
    params: its parameters.
    contexts: increasing numbers of tokens; one row.
    steps: steps a repeat; their mean is one measurement.
    repeats: measurements a context, after one that is thrown away.
  """
  room = contexts[-1] + (repeats + 1) * steps
  found = {}
  for context in contexts:
    cache = init_cache(config, 1, room)
    _, cache = _timed_steps(config, params, cache, context)
    times = []
    for _ in range(repeats + 1):
      seconds, cache = _timed_steps(config, params, cache, steps)
      times.append(seconds)
    found[context] = float(np.median(times[1:]))
  return found


def uncached_seconds(
  config: ModelConfig,
  params: Mapping[str, Any],
  contexts: Sequence[int],
  *,
  repeats: int,
) -> dict[int, float]:
  """Returns median seconds of a forward pass, which is one token uncached."""
  found = {}
  for context in contexts:
    tokens = _tokens(config, context)
    call = lambda tokens=tokens: forward(config, params, tokens)
    found[context] = _median_seconds(call, repeats)
  return found


def check(contexts: Sequence[int], steps: int, repeats: int) -> None:
  """Raises ValueError for what cannot be measured."""
  if (
    not contexts or min(contexts) < 1 or list(contexts) != sorted(set(contexts))
  ):
    raise ValueError(
      f'contexts={tuple(contexts)} must be positive and increase.'
    )
  for name, value in (('steps', steps), ('repeats', repeats)):
    if value < 1:
      raise ValueError(f'pace.{name}={value} must be at least 1.')


def _timed_steps(config, params, cache, steps):
  token = _tokens(config, 1)[:, 0]
  jax.block_until_ready(cache.length)
  start = time.perf_counter()
  for _ in range(steps):
    logits, cache = decode_step(config, params, cache, token)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  jax.block_until_ready(token)
  return (time.perf_counter() - start) / steps, cache


def _median_seconds(call: Callable[[], jax.Array], repeats: int) -> float:
  times = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - start)
  return float(np.median(times[1:]))


def _tokens(config: ModelConfig, count: int) -> jax.Array:
  ids = np.arange(count) * 31 % config.vocab_size
  return jnp.asarray(ids[None, :], jnp.int32)
