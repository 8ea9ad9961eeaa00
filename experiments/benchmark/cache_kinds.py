"""Steps of one model over caches of several kinds, after the same context.

The tokens that a bounded cache keeps are random where its score observes
attention, and the last tokens otherwise. The logits of each kind are compared
with a dense cache that the block loop reads through the mask which the kind
stands for. That dense cache has the same tokens in the same codes; where a
bounded cache keeps tokens, they take the place of the last tokens (a score
needs no positions, because keys are stored rotated). An observing kind then
takes further steps next to the same cache under the block loop, which shows
that both evict the same tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.measuring import clock
from experiments.measuring.clock import Entry, Pace, Runner
from experiments.measuring.model import (
  BLOCKWISE,
  ModelCase,
  Streams,
  aligned,
  attending_kernels,
  fill,
  step_bytes,
  step_calls,
  write_layers,
)
from kvjax.caches.dense import Dense
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache
from kvjax.decoding.parse import parse_cache
from kvjax.decoding.steps import decode_step
from kvjax.streams.codecs import Codec

TOLERANCE = 1e-4  # relative to the largest logit
FURTHER = 3  # steps in which an observing kind is compared with the block loop


@dataclasses.dataclass(frozen=True)
class CacheCase(ModelCase):
  """A model's step over several caches, by the default kernel of each.

  Attributes:
    names: in the words of `parse_cache`, 'dense' among them.
  """

  record = 'caches'
  base = 'kvjax dense'

  names: Sequence[str]

  @property
  def decoded(self) -> int:
    return self.batch

  def entries(self, pace: Pace) -> dict[str, Entry]:
    capacity = aligned(self.context + pace.room)
    return {
      f'kvjax {name}': functools.partial(
        _runner, self, capacity, *parse_cache(name)
      )
      for name in self.names
    }


def _runner(case: CacheCase, capacity: int, kind: Any, codec: Any) -> Runner:
  kind = kind.bind(capacity)
  cache = after_context(case, capacity, kind, codec)
  size = step_bytes(case.config, case.params, cache)
  kernel = _default(case, capacity, kind, codec)
  call = step_calls(case, cache, None)
  error = clock.difference(call(), _masked(case, capacity, kind, codec))
  if kind.observes:
    cache = after_context(case, capacity, kind, codec)
    plain = step_calls(case, cache, BLOCKWISE)
    plain()
    differences = [clock.difference(call(), plain()) for _ in range(FURTHER)]
    error = max(error, *differences)
  return Runner(call, size, kernel, error, TOLERANCE)


def _default(case: CacheCase, capacity: int, kind: Any, codec: Any) -> str:
  """Returns the kernel that reads the first layer's cache by default."""
  config = dataclasses.replace(case.config, layers=case.config.layers[:1])
  params = {**case.params, 'layers': case.params['layers'][:1]}
  cache = init_cache(config, case.batch, capacity, kinds=kind, codec=codec)
  step = functools.partial(decode_step, config)
  return attending_kernels(step, params, cache, case.token)


def _masked(case: CacheCase, capacity: int, kind: Any, codec: Any) -> Any:
  """Returns a step's logits by a dense cache and the mask of a kind."""
  # A kind with a book a layer chooses the `budget - 1` tokens that it keeps.
  chooses = kind.book_per_layer

  def narrowed(layer):
    rule = layer.attention.visibility
    if chooses:
      rule = rule.narrow(kind.budget)
    else:
      rule = kind.visible_through(rule)
    attention = dataclasses.replace(layer.attention, visibility=rule)
    return dataclasses.replace(layer, attention=attention)

  config = dataclasses.replace(
    case.config, layers=tuple(map(narrowed, case.config.layers))
  )
  streams = case.streams
  if chooses:
    count = kind.budget - 1
    streams = [
      jax.tree.map(lambda x, y: x.at[:, :, -count:].set(y), layer, kept)
      for layer, kept in zip(streams, _kept(case, kind), strict=True)
    ]
  dense = Dense().bind(capacity)
  cache = init_cache(config, case.batch, capacity, kinds=dense, codec=codec)
  cache = fill(cache, streams)
  masked = dataclasses.replace(case, config=config)
  return step_calls(masked, cache, BLOCKWISE)()


def after_context(
  case: ModelCase, capacity: int, kind: Any, codec: Codec | None
) -> Cache:
  """Returns a cache of a kind after the context."""
  cache: Any = init_cache(
    case.config, case.batch, capacity, kinds=kind, codec=codec
  )
  if not kind.book_per_layer:
    return fill(cache, case.streams)
  first = jnp.arange(kind.budget - 1, dtype=jnp.int32)[None, None, :]
  first = jnp.broadcast_to(first, (case.batch, 1, kind.budget - 1))
  books = tuple(
    book.replace(
      positions=book.positions.at[:, :, : kind.budget - 1].set(chosen)
    )
    for book, chosen in zip(cache.books, _chosen(case, kind), strict=True)
  )
  return cache.replace(
    length=jnp.full((case.batch,), case.context, jnp.int32),
    books=books,
    stores=write_layers(cache, _kept(case, kind), first),
  )


def _chosen(case: ModelCase, kind: Any) -> list[jax.Array]:
  """Returns int32 `[B, 1 | K, budget - 1]` a layer: positions that it keeps."""
  chosen = []
  for index, layer in enumerate(case.config.layers):
    attention: Any = layer.attention
    heads = attention.num_kv_heads if kind.per_head else 1
    shape = (case.batch, heads, case.context)
    rank = jnp.broadcast_to(jnp.arange(case.context), shape)
    if kind.observes:
      rank = jax.random.uniform(jax.random.key(index), shape)
    kept = jax.lax.top_k(rank, kind.budget - 1)[1]
    chosen.append(kept.astype(jnp.int32))
  return chosen


def _kept(case: ModelCase, kind: Any) -> Streams:
  """Returns the streams of the tokens that a bounded cache keeps."""
  take = lambda place: lambda x: jnp.take_along_axis(x, place[..., None], 2)
  return [
    jax.tree.map(take(place), layer)
    for layer, place in zip(case.streams, _chosen(case, kind), strict=True)
  ]
