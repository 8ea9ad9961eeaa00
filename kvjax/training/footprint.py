"""Bytes that one more token leaves behind, promised and allocated."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.caches.codecs import Codec, Plain
from kvjax.decoding.cache import Cache
from kvjax.models.config import ModelConfig


def bytes_per_token(config: ModelConfig, codec: Codec | None = None) -> int:
  """Returns stream bytes of one token in all layers, from the config alone."""
  total = 0
  for layer in config.layers:
    for stream in layer.attention.streams().values():
      stored = codec if codec is not None and stream.quantize else Plain()
      leaves = stored.leaves(stream.width, config.dtype)
      total += stream.heads * sum(
        math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(leaves)
      )
  return total


def query_bytes_per_token(config: ModelConfig) -> int:
  """Returns what a Q cache would add a token; nothing would read it."""
  width = sum(layer.attention.query_width for layer in config.layers)
  return width * jnp.dtype(config.dtype).itemsize


def stream_bytes(cache: Cache) -> int:
  """Returns bytes allocated for streams: no positions, no books."""
  return sum(_nbytes(store) for store in cache.stores)


def _nbytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
