"""Bytes that one more token leaves behind, promised and allocated."""

import jax

from kvjax.decoding.cache import Cache
from kvjax.memory.planning import plan
from kvjax.models.config import ModelConfig
from kvjax.streams.codecs import Codec


def bytes_per_token(config: ModelConfig, codec: Codec | None = None) -> int:
  """Returns stream bytes of one token in all layers, from the config alone."""
  return plan(config, batch_size=1, capacity=1, codec=codec).bytes_per_token


def query_bytes_per_token(config: ModelConfig) -> int:
  """Returns what a Q cache would add a token; nothing would read it."""
  return plan(config, batch_size=1, capacity=1).query_cache_bytes


def stream_bytes(cache: Cache) -> int:
  """Returns bytes allocated for streams: no positions, no books."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(cache.stores))
