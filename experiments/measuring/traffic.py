"""Bytes that decoding must read: the floor that its speed is held against."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.decoding.cache import Cache
from kvjax.layers.int8_weight import CodedWeight
from kvjax.memory.planning import plan
from kvjax.models.config import ModelConfig


def step_bytes(
  config: ModelConfig, params: Mapping[str, Any], cache: Cache
) -> int:
  """Returns bytes that one decode step must read from memory, at least.

  Params that a token reads (of experts, those of one row: other rows may ask
  for others), and the slots that hold a token. Waits for the cache's books.
  """
  head: Any = params['embedding' if config.tied else 'head']
  stored = 'int8' if isinstance(head, CodedWeight) else head.dtype
  planned = plan(config, batch_size=1, capacity=1, param_dtype=stored)
  live = 0.0
  for index, store in zip(cache.layout.books, cache.stores, strict=True):
    if index >= 0:
      held = cache.books[index].positions >= 0
      live += float(jnp.mean(held)) * held_bytes(store)
  return (
    planned.active_params_bytes + round(live) + held_bytes(cache.cross or ())
  )


def held_bytes(tree: Any) -> int:
  """Returns the bytes of all arrays of a tree."""
  return sum(x.nbytes for x in jax.tree.leaves(tree))
