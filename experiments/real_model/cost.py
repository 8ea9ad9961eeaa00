"""What each cache forgets of a context, by what the model says behind it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from experiments.measuring.divergence import divergence
from experiments.real_model.task import Task
from experiments.reporting.writer import follow
from experiments.training.step import to_bits
from experiments.training.variants import array_bytes
from kvjax.memory.planning import plan
from kvjax.text import prefill_in_chunks

Record = dict[str, Any]


def measure(
  config: kvjax.ModelConfig,
  params: Any,
  task: Task,
  caches: Mapping[str, Mapping[str, Any]],
) -> Iterator[Record]:
  """Yields a record a cache; the first must forget nothing.

  Args:
    config, params: the model.
    task: what it reads.
    caches: by name, `kinds` and `codec` of `init_cache`.
  """
  full = None
  for name, options in follow('caches', caches.items(), len(caches)):
    if isinstance(codec := options.get('codec'), kvjax.Centred):
      other = jnp.asarray(task.other)
      codec = kvjax.calibrate(config, params, other, codec)
      options = {**options, 'codec': codec}
    scores, cache_bytes = read(config, params, task, options)
    full = scores if full is None else full
    yield {'record': 'cost', 'cache': name, **cache_bytes} | compare(
      task, scores, full
    )


def read(
  config: kvjax.ModelConfig,
  params: Any,
  task: Task,
  options: Mapping[str, Any],
) -> tuple[jax.Array, Record]:
  """Returns log-probabilities `[N, L, V]` behind contexts in a cache.

  Entry `[n, i]` is of the token after `following[n, i]`. Also returns bytes of
  the cache that the contexts were compressed into.
  """
  rows, context = task.contexts.shape
  cache = kvjax.init_cache(config, rows, task.capacity, **options)
  of_context = plan(config, batch_size=1, capacity=context, **options)
  whole = plan(config, batch_size=rows, capacity=task.capacity, **options)
  sizes = {
    'keeps_all': cache.layout.limit is not None,
    'bytes_per_token': of_context.cache_bytes / context,
    'planned_bytes': whole.cache_bytes,
    'cache_bytes': array_bytes(cache),
  }
  _, cache = prefill_in_chunks(config, params, cache, task.contexts)
  cache = kvjax.take(cache, task.row)
  following = jnp.asarray(task.following)
  logits, _ = kvjax.extend(config, params, cache, following, donate=True)
  return jax.nn.log_softmax(logits), sizes


def compare(task: Task, scores: jax.Array, full: jax.Array) -> Record:
  """Returns how far predictions are from those through the full cache.

  Args:
    task: what was read.
    scores: log-probabilities `[N, L, V]` through a cache.
    full: the same through one that forgets nothing.

  Returns:
    Mean and median Kullback-Leibler divergence `KL(full || cache)` in nats a
    token of prose, bits per byte of the prose, and the share of digits that are
    the likeliest token.
  """
  distance = np.asarray(divergence(full, scores))[task.is_prose]
  target = jnp.maximum(task.following[:, 1:], 0)
  of_target = jnp.take_along_axis(scores[:, :-1], target[..., None], -1)[..., 0]
  losses = -np.asarray(of_target)[task.is_prose[:, 1:]]
  is_right = np.asarray(jnp.argmax(scores[:, :-1], axis=-1) == target)
  return {
    'kl_mean': float(np.mean(distance, dtype=np.float64)),
    'kl_median': float(np.median(distance)),
    'bits_per_byte': to_bits(float(losses.mean())) * task.tokens_per_byte,
    'digits': float(is_right[task.is_digit[:, 1:]].mean()),
  }


def uncached_check(
  config: kvjax.ModelConfig, params: Any, task: Task
) -> Record:
  """Returns how far the default cache is from no cache at all, on one text."""
  context = task.contexts.shape[1]
  after = task.following[0][task.is_prose[0]]
  ids = np.concatenate([task.contexts[0], after])[None]
  logits = kvjax.forward(config, params, jnp.asarray(ids))[:, context:]
  first = dataclasses.replace(
    task, contexts=task.contexts[:1], row=task.row[:1], following=after[None]
  )
  cached, _ = read(config, params, first, {})
  distance = divergence(jax.nn.log_softmax(logits), cached)
  return {'record': 'uncached', 'kl': float(jnp.mean(distance))}
