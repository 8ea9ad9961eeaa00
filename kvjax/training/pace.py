"""Seconds a token, cached and uncached, as the context grows."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.decoding.cache import init_cache
from kvjax.decoding.steps import decode_step, extend
from kvjax.models.config import ModelConfig
from kvjax.models.forward import forward

CHUNK = 64  # tokens fed at once while the context is filled


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
    contexts: increasing multiples of `CHUNK`; one row.
    steps: steps a repeat; their mean is one measurement.
    repeats: measurements a context, after one that is thrown away.
  """
  room = contexts[-1] + (repeats + 1) * steps
  found = {}
  for context in contexts:
    cache = init_cache(config, 1, room)
    for start in range(0, context, CHUNK):
      tokens = _tokens(config, start, CHUNK)
      _, cache = extend(config, params, cache, tokens, donate=True)
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
    tokens = _tokens(config, 0, context)
    call = lambda tokens=tokens: forward(config, params, tokens)
    found[context] = _median_seconds(call, repeats)
  return found


def check_contexts(contexts: Sequence[int]) -> None:
  """Raises ValueError unless contexts increase in multiples of `CHUNK`."""
  bad = [c for c in contexts if c < CHUNK or c % CHUNK]
  if not contexts or bad or list(contexts) != sorted(set(contexts)):
    raise ValueError(
        f'contexts={tuple(contexts)} must be increasing multiples of {CHUNK}.'
    )


def _timed_steps(config, params, cache, steps):
  token = _tokens(config, 0, 1)[:, 0]
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


def _tokens(config: ModelConfig, start: int, count: int) -> jax.Array:
  ids = (np.arange(start, start + count) * 31) % config.vocab_size
  return jnp.asarray(ids[None, :], jnp.int32)
