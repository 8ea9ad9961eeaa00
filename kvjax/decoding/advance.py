"""One call of a decoder through its cache: the traced heart of decoding."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.attention.rotary import rotary_table
from kvjax.caches.kind import Kind
from kvjax.decoding.cache import Cache
from kvjax.decoding.layer import Step, read, remember
from kvjax.models.config import ModelConfig
from kvjax.models.decoder import embed, run_layer
from kvjax.models.encoder import Encoded
from kvjax.streams.view import fresh_view


@dataclasses.dataclass(frozen=True)
class Options:
  """Static choices of a call.

  Attributes:
    absorb: which form of latent attention; None for the cheaper one.
    block: slots read at once; None for the kernel's choice.
    kernel: that must attend; None for the fastest.
    attention_layers: layers whose attention weights are wanted.
  """

  absorb: bool | None = None
  block: int | None = None
  kernel: str | None = None
  attention_layers: tuple[int, ...] = ()


def advance(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: jax.Array,
  held: jax.Array,
  options: Options,
) -> tuple[jax.Array, Cache, tuple[Any, ...]]:
  """Feeds tokens `[B, T]` where `held [B, T]` is true.

  Returns:
    Activations `[B, T, D]` before the final norm, NaN in rows that overflowed
    or have no source to read, the new cache, and the wanted attention weights.
  """
  chunk = cache.layout.chunk
  if chunk is not None and chunk < tokens.shape[1]:
    return _by_chunks(config, params, cache, tokens, held, options, chunk)
  cache, books, slots, step = place(cache, held, options)
  x = embed(config, params, tokens, step.positions)
  x, cache, weights = _layers(
    config, params, cache, books, slots, step, x, options
  )
  lost = cache.overflow
  if cache.source is not None:
    lost |= jnp.all(cache.source < 0, axis=1)
  return jnp.where(lost[:, None, None], jnp.nan, x), cache, weights


def _by_chunks(config, params, cache, tokens, held, options, chunk):
  """A kind that evicts takes a long call piece by piece."""
  if options.attention_layers:
    raise ValueError(
      f'attention_layers={options.attention_layers} of {tokens.shape[1]} '
      f'tokens at once: this cache evicts every {chunk}. Feed at most '
      f'{chunk} tokens a call.'
    )
  # Of a row that does not fit, no piece is written.
  cache, held = _admit(cache, held)
  batch, count = tokens.shape[0], -(-tokens.shape[1] // chunk)
  pad = ((0, 0), (0, count * chunk - tokens.shape[1]))

  def split(x):
    return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, chunk), 1, 0)

  def piece(cache, part):
    new, mask = part
    x, cache, _ = advance(config, params, cache, new, mask, options)
    return cache, x

  cache, x = jax.lax.scan(piece, cache, (split(tokens), split(held)))
  x = jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, -1)
  return x[:, : tokens.shape[1]], cache, ()


def place(
  cache: Cache, held: jax.Array, options: Options
) -> tuple[Cache, tuple[Any, ...], tuple[Any, ...], Step]:
  """Decides where tokens `held [B, T]` go, once for all layers.

  Returns:
    The cache with its books after, the books before, slots of each book, and
    what the layers of this call share.
  """
  kinds, before = cache.layout.kinds(), cache.length
  with jax.named_scope('place'):
    cache, held = _admit(cache, held)
    order = jnp.cumsum(held.astype(jnp.int32), axis=1) - 1
    positions = jnp.where(held, before[:, None] + order, -1)
    after = before + jnp.sum(held, axis=1, dtype=jnp.int32)
    placed = [
      kind.place(book, before, positions)
      for kind, book in zip(kinds, cache.books, strict=True)
    ]
  table = _tables(positions, cache.layout.rotary_length)
  choices = options.absorb, options.block, options.kernel
  step = Step(positions, before, after, table, *choices)
  old = cache.books
  cache = dataclasses.replace(
    cache,
    length=after,
    books=tuple(book for book, _ in placed),
  )
  return cache, old, tuple(slots for _, slots in placed), step


def _admit(cache, held):
  """Returns the cache and `held [B, T]` without rows that do not fit whole.

  A row fits if every kind has room for all of its tokens; the others are
  flagged.
  """
  count = jnp.sum(held, axis=1, dtype=jnp.int32)
  fits = jnp.ones_like(cache.overflow)
  if cache.layout.limit is not None:
    fits = (cache.length + count <= cache.layout.limit) | (count == 0)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    # A row that is refused asks for no pages.
    fits &= kind.has_room(book, cache.length, jnp.where(fits, count, 0))
  cache = dataclasses.replace(cache, overflow=cache.overflow | ~fits)
  return cache, held & fits[:, None]


def _tables(positions, rotary_length):
  """Returns a function that makes each rotary table once a step."""
  tables: dict[Any, Any] = {}

  def table(rotary, limit):
    if rotary is None:
      return None
    if (rotary, limit) not in tables:
      at = positions if limit is None else jnp.minimum(positions, limit)
      tables[rotary, limit] = rotary_table(rotary, at, rotary_length)
    return tables[rotary, limit]

  return table


def _layers(config, params, cache, old, slots, step, x, options):
  layout, books, stores = cache.layout, list(cache.books), []
  views: dict[int, Any] = {}
  weights: dict[int, Any] = {}
  for index, layer in enumerate(config.layers):
    p, owner = params['layers'][index], config.owner(index)
    memory, at = layout.stores[owner], layout.books[owner]

    def keep(streams, index=index, memory=memory, at=at):
      place = (old[at], books[at]), slots[at], cache.stores[index]
      return remember(memory, *place, streams, step)

    with jax.named_scope(f'layer_{index}'):
      x, (store, views[index], reading) = run_layer(
        layer,
        config.norm,
        p,
        x,
        _attention(layer, p, params, memory, step, keep, views.get(owner)),
        _cross(cache, layer, p, index),
        config.residual_scale,
      )
      stores.append({} if store is None else store)
      if index == owner:
        books[at] = evict(memory.kind, books[at], reading, step)
      if index in options.attention_layers:
        weights[index] = reading.weights()
  cache = cache.replace(books=tuple(books), stores=tuple(stores))
  return x, cache, tuple(weights[i] for i in options.attention_layers)


def evict(kind: Kind, book: Any, reading: Any, step: Step) -> Any:
  """Returns a layer's book without the slots that its kind gives up."""
  seen = None
  if kind.observes:  # a number for every slot that holds a position
    seen = reading.received(book.positions.shape[1], step.block)
  after = step.after
  if kind.book_per_layer and not kind.observes:
    # Run before attention, eviction would copy the positions that attention
    # reads. What was observed makes it wait; here, what was read does.
    asked = jnp.any(reading.lse != -jnp.inf, axis=(1, 2, 3))
    after = jnp.where(asked, after, step.before)
  return kind.evict(book, seen, step.before, after)


def _attention(layer, params, model, memory, step, keep, shared):
  """Returns a layer's attention through its own store, or a shared one."""
  variant, q = layer.attention, params['attention']

  def attention(h):
    store, views = None, shared
    if views is None:
      with jax.named_scope('leave'):
        table = step.table(variant.rotary, None)
        streams = variant.project_streams(q, h, table)
      store, views = keep(streams)
    y, reading = read(
      variant, q, h, views, memory.kind, model.get('relative'), step
    )
    return y, (store, views, reading)

  return attention


def _cross(cache, layer, params, index):
  """Returns attention to the source's keys and values, written once."""
  if layer.cross is None:
    return None

  def cross(h):
    positions = jnp.zeros(h.shape[:2], jnp.int32)
    step = Step(positions, cache.length, cache.length, lambda *_: None)
    view = fresh_view(cache.cross[index], cache.source)
    return read(layer.cross, params['cross'], h, (view,), None, None, step)[0]

  return cross


def write_source(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  encoded: Encoded,
) -> Cache:
  """Returns the cache with keys and values of the source in every layer."""
  cross = []
  for index, layer in enumerate(config.layers):
    if layer.cross is None:
      cross.append({})
      continue
    q = params['layers'][index]['cross']
    streams = layer.cross.project_streams(q, encoded.hidden, None)
    if cache.cross is not None:
      streams = {
        name: x.astype(cache.cross[index][name].dtype)
        for name, x in streams.items()
      }
    cross.append(streams)
  return dataclasses.replace(
    cache, cross=tuple(cross), source=encoded.positions
  )
