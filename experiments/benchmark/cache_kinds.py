"""Steps of one model over caches of several kinds, all after as many tokens.

What a bounded cache keeps is chosen at random where its score observes, and is
the last tokens otherwise. Each kind is held against dense caches, read by the
block loop through the mask that the kind stands for: of the same tokens, in the
same codes, those that a bounded cache keeps in the places of the last ones (a
score needs no positions, keys are stored rotated). An observing kind then takes
steps more, beside itself by the block loop: what it forgets is the same.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock
from experiments.measuring.clock import Runner
from experiments.measuring.model import layer_streams, step_calls
from experiments.measuring.ran import ran
from experiments.measuring.traffic import step_bytes
from kvjax.caches.dense import Dense
from kvjax.caches.kind import Kind
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.cache import Cache
from kvjax.decoding.parse import parse_cache
from kvjax.decoding.steps import decode_step
from kvjax.models.config import ModelConfig
from kvjax.streams.codecs import Codec

DENSE = 'dense'
TOLERANCE = 1e-4  # relative to the largest logit
MORE = 3  # steps that an observing kind is held to
ALIGNED = 64  # slots, of which every kernel reads a multiple


@dataclasses.dataclass(frozen=True)
class Case:
  """A model after a context.

  Attributes:
    config: of the model.
    batch: B.
    context: tokens that each row has seen.
    room: slots beyond them, for the tokens that are timed.
  """

  config: ModelConfig
  batch: int
  context: int
  room: int

  @property
  def capacity(self) -> int:
    """Slots of a dense cache."""
    return -(-(self.context + self.room) // ALIGNED) * ALIGNED

  @property
  def token(self) -> jax.Array:
    """The first token that is decoded, int32 `[B]`."""
    return jnp.arange(self.batch, dtype=jnp.int32) % self.config.vocab_size


def measure(
  case: Case, params: Mapping[str, Any], caches: Sequence[str], repeats: int
) -> dict[str, Any]:
  """Returns results by cache, each by the kernel that it gets by default.

  Args:
    case: model, rows, context.
    params: of the model.
    caches: in the words of `parse_cache`, 'dense' among them.
    repeats: turns of the race.
  """
  layers = range(len(case.config.layers))
  streams = [
    layer_streams(case.config, case.batch, case.context, index)
    for index in layers
  ]
  masked = functools.cache(functools.partial(_masked, case, params, streams))
  entries = {
    f'kvjax {text}': functools.partial(
      _runner, case, params, streams, *parse_cache(text), masked
    )
    for text in caches
  }
  runners, skipped = clock.enter(entries)
  return clock.race(runners, repeats) | skipped


def beside_dense(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns rows with how many times as long the dense cache takes."""
  dense = {r['name']: r['seconds'] for r in rows if 'seconds' in r}
  base = dense.get(f'kvjax {DENSE}')
  return [
    row | {'ratios': {DENSE: base / row['seconds']}}
    if base and 'seconds' in row
    else row
    for row in rows
  ]


def _runner(case, params, streams, kind, codec, masked) -> Runner:
  kind = kind.bind(case.capacity)
  cache = filled(case, streams, kind, codec)
  size = step_bytes(case.config, params, cache)
  kernel = _default(case, params, kind, codec)
  same = functools.partial(step_calls, case.config, params, token=case.token)
  plain = None
  if kind.observes:
    plain = same(filled(case, streams, kind, codec), kernel='blockwise')
  call = same(cache, kernel=None)
  error = clock.difference(call(), masked(kind, codec))
  if plain is not None:
    plain()
    found = [clock.difference(call(), plain()) for _ in range(MORE)]
    error = max(error, *found)
  return Runner(call, size, kernel, error, TOLERANCE)


def _default(case, params, kind, codec) -> str:
  """Returns the kernel that reads a cache by default, of the first layer."""
  config = dataclasses.replace(case.config, layers=case.config.layers[:1])
  short = {**params, 'layers': params['layers'][:1]}
  cache = init_cache(config, case.batch, case.capacity, kinds=kind, codec=codec)
  one = functools.partial(decode_step, config)
  return ran(one, short, cache, case.token)


def _masked(case, params, streams, kind, codec) -> np.ndarray:
  """Returns a step's logits by a dense cache and the mask of a kind."""

  def narrowed(layer):
    rule = layer.attention.visibility
    rule = (
      rule.narrow(kind.budget) if _forgets(kind) else kind.visible_through(rule)
    )
    attention = dataclasses.replace(layer.attention, visibility=rule)
    return dataclasses.replace(layer, attention=attention)

  layers = tuple(map(narrowed, case.config.layers))
  other = dataclasses.replace(case.config, layers=layers)
  if _forgets(kind):
    count = kind.budget - 1
    streams = [
      jax.tree.map(lambda x, y: x.at[:, :, -count:].set(y), each, chosen)
      for each, chosen in zip(streams, _kept(case, kind, streams), strict=True)
    ]
  cache = filled(case, streams, Dense().bind(case.capacity), codec)
  logits, _ = decode_step(other, params, cache, case.token, kernel='blockwise')
  return np.asarray(logits)


def _forgets(kind: Kind) -> bool:
  """Whether a kind keeps tokens of its own choice, `budget - 1` between steps.

  Each layer then has a book of its own.
  """
  return kind.book_per_layer


def filled(case: Case, streams: Any, kind: Kind, codec: Codec | None) -> Cache:
  """Returns a cache of a kind after the context."""
  cache = init_cache(
    case.config, case.batch, case.capacity, kinds=kind, codec=codec
  )
  if _forgets(kind):
    places = [_chosen(case, kind, index) for index in range(len(streams))]
    length = jnp.full((case.batch,), case.context, jnp.int32)
    return _keep(cache, _kept(case, kind, streams), places, length)
  return _fill(cache, streams)


def _chosen(case: Case, kind: Any, layer: int) -> jax.Array:
  """Returns int32 `[B, 1 | K, budget - 1]`: positions that a layer keeps."""
  attention: Any = case.config.layers[layer].attention
  heads = attention.num_kv_heads if kind.per_head else 1
  shape = (case.batch, heads, case.context)
  rank = jnp.broadcast_to(jnp.arange(case.context), shape)
  if kind.observes:
    rank = jax.random.uniform(jax.random.key(layer), shape)
  return jax.lax.top_k(rank, kind.budget - 1)[1].astype(jnp.int32)


def _kept(case: Case, kind: Any, streams: Any) -> list[Any]:
  """Returns the streams of the tokens that a bounded cache keeps."""
  places = [_chosen(case, kind, index) for index in range(len(streams))]
  take = lambda place: lambda x: jnp.take_along_axis(x, place[..., None], 2)
  return [
    jax.tree.map(take(place), each)
    for each, place in zip(streams, places, strict=True)
  ]


def _fill(cache: Any, streams: Sequence[Mapping[str, jax.Array]]) -> Cache:
  batch, _, context, _ = next(iter(streams[0].values())).shape
  positions = jnp.arange(context, dtype=jnp.int32)[None, :]
  positions = jnp.broadcast_to(positions, (batch, context))
  (kind,) = cache.layout.kinds()
  place = jax.jit(kind.place)
  book, slots = place(cache.books[0], cache.length, positions)
  stores = _written(cache, streams, [slots] * len(streams))
  length = jnp.full((batch,), context, jnp.int32)
  return cache.replace(length=length, books=(book,), stores=stores)


def _keep(
  cache: Any, streams: Any, places: Sequence[jax.Array], length: jax.Array
) -> Cache:
  """Returns a bounded cache whose first slots hold tokens of given places."""
  batch, _, count = places[0].shape
  first = jnp.arange(count, dtype=jnp.int32)[None, None, :]
  first = jnp.broadcast_to(first, (batch, 1, count))
  books = tuple(
    book.replace(positions=book.positions.at[:, :, :count].set(place))
    for book, place in zip(cache.books, places, strict=True)
  )
  stores = _written(cache, streams, [first] * len(streams))
  return cache.replace(length=length, books=books, stores=stores)


def _written(cache: Any, streams: Any, slots: Sequence[Any]) -> tuple[Any, ...]:
  return tuple(
    _write(memory, store, each, where)
    for store, memory, each, where in zip(
      cache.stores, cache.layout.stores, streams, slots, strict=True
    )
  )


# A layer at a time: a program of all of them takes as many times to compile.
@functools.partial(jax.jit, static_argnames='memory', donate_argnames='store')
def _write(memory, store, streams, slots):
  return memory.kind.write(store, memory.encode(streams), slots)
