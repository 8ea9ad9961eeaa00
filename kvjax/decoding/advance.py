"""One call of a decoder through its cache: the traced heart of decoding."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import DynamicJaxprTracer

from kvjax.attention.rotary import Rotary, rotary_table
from kvjax.attention.variant import Table
from kvjax.decoding.cache import Cache
from kvjax.decoding.checks import check_shapes, drop_rows_of_unknown_ids
from kvjax.decoding.layer import (
  LayerEntry,
  LayerResult,
  attend_through_cache,
  attend_to_shared,
)
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.options import DecodeOptions
from kvjax.decoding.reading import CallState
from kvjax.decoding.source import cross_attention
from kvjax.mesh.region import constrain_rows, constrain_whole, on_every_device
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import embed, run_layer


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the tokens of one call go, decided once for all layers.

  Attributes:
    books_before: books without the tokens; those of the cache hold them.
    slots: of the tokens, one entry a book; None where each layer places them.
    state: what the layers of the call share.
  """

  books_before: tuple[Any, ...]
  slots: tuple[Any, ...]
  state: CallState


def advance(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  tokens: jax.Array,
  is_token: jax.Array,
  options: DecodeOptions,
  attention_layers: tuple[int, ...] = (),
) -> tuple[jax.Array, Cache, tuple[Any, ...]]:
  """Feeds tokens `[B, T]` where `is_token [B, T]` is true.

  Returns:
    Activations `[B, T, D]` before the final norm, NaN in rows that overflowed
    or have no source to read; the new cache; and the attention weights of
    `attention_layers`.
  """
  check_shapes(config, params, cache)
  cache, is_token = drop_rows_of_unknown_ids(config, cache, tokens, is_token)
  piece = cache.layout.piece
  if piece is not None and piece < tokens.shape[1]:
    _refuse_weights_by_pieces(attention_layers, tokens.shape[1], piece)
    return _advance_by_pieces(
      config, params, cache, tokens, is_token, options, piece
    )
  return _advance_at_once(
    config, params, cache, tokens, is_token, options, attention_layers
  )


def _advance_at_once(
  config, params, cache, tokens, is_token, options, attention_layers=()
):
  """Feeds a call, or a piece of one, whose tokens a cache takes at once."""
  rotaries = [layer.attention.rotary for layer in config.layers]
  cache, placement = place_tokens(cache, is_token, options, rotaries)
  x = embed(config, params, tokens, placement.state.positions)
  x, cache, weights = _run_layers(
    config, params, cache, placement, x, attention_layers
  )
  lost = cache.overflow
  if cache.source is not None:
    lost |= jnp.all(cache.source < 0, axis=1)
  return jnp.where(lost[:, None, None], jnp.nan, x), cache, weights


def _refuse_weights_by_pieces(layers, tokens: int, size: int) -> None:
  if layers:
    raise ValueError(
      f'attention_layers={layers} of {tokens} tokens at once: this cache '
      f'evicts every {size}. Feed at most {size} tokens a call.'
    )


def _advance_by_pieces(config, params, cache, tokens, is_token, options, size):
  """Feeds a long call piece by piece, for a kind that evicts between them."""
  # A row that does not fit is dropped whole: no piece of it is written.
  cache, is_token = _admit(cache, is_token)
  batch, length = tokens.shape
  count = -(-length // size)
  pad = ((0, 0), (0, count * size - length))

  def split(x):
    return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, size), 1, 0)

  def feed(cache, piece):
    piece_tokens, piece_is_token = piece
    x, cache, _ = _advance_at_once(
      config, params, cache, piece_tokens, piece_is_token, options
    )
    return cache, x

  cache, x = jax.lax.scan(feed, cache, (split(tokens), split(is_token)))
  x = jnp.moveaxis(x, 0, 1).reshape(batch, count * size, -1)
  return x[:, :length], cache, ()


def place_tokens(
  cache: Cache,
  is_token: jax.Array,
  options: DecodeOptions,
  rotaries: Sequence[Rotary | None],
) -> tuple[Cache, Placement]:
  """Returns the cache with tokens `[B, T]` in its books, and where they go.

  Args:
    cache: without the tokens.
    is_token: bool `[B, T]`.
    options: of the call.
    rotaries: of all layers; equal ones share a table.
  """
  before = cache.length
  with jax.named_scope('place'):
    cache, is_token = _admit(cache, is_token)
    order = jnp.cumsum(is_token.astype(jnp.int32), axis=1) - 1
    positions = jnp.where(is_token, before[:, None] + order, -1)
    after = before + jnp.sum(is_token, axis=1, dtype=jnp.int32)
    # A few integers: cheaper to compute on every device than to move.
    positions, after = constrain_whole(positions), constrain_whole(after)
    # A kind that chooses for each layer places tokens there.
    placed = [
      (book, None)
      if kind.book_per_layer
      else kind.place(book, before, positions)
      for kind, book in zip(cache.layout.kinds(), cache.books, strict=True)
    ]
  placement = Placement(
    books_before=cache.books,
    slots=tuple(slots for _, slots in placed),
    state=CallState(
      positions=positions,
      before=before,
      after=after,
      table=_rotary_tables(rotaries, positions, cache.layout.rotary_length),
      options=options,
      rotary_length=cache.layout.rotary_length,
    ),
  )
  books = tuple(book for book, _ in placed)
  return dataclasses.replace(cache, length=after, books=books), placement


def _admit(cache: Cache, is_token: jax.Array) -> tuple[Cache, jax.Array]:
  """Returns the cache and `is_token [B, T]` without rows that do not fit whole.

  A row fits if every kind has room for all of its tokens. The rows that do not
  fit are flagged.
  """

  def admit(length, overflow, is_token):
    count = jnp.sum(is_token, axis=1, dtype=jnp.int32)
    fits = jnp.ones_like(overflow)
    if cache.layout.limit is not None:
      fits = (length + count <= cache.layout.limit) | (count == 0)
    for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
      # A row that is refused already must not take pages from the others.
      fits &= kind.has_room(book, length, jnp.where(fits, count, 0))
    return overflow | ~fits, is_token & fits[:, None]

  overflow, is_token = on_every_device(admit)(
    cache.length, cache.overflow, is_token
  )
  return dataclasses.replace(cache, overflow=overflow), is_token


def _rotary_tables(
  rotaries: Sequence[Rotary | None], positions: jax.Array, rotary_length: int
) -> Callable[[Rotary | None, int | None], Table]:
  """Returns a function that gives the table of a rotary, made once a call."""
  # Tables are made here, outside the programs of the layers that share them.
  tables = {
    rotary: jax.tree.map(
      constrain_rows, rotary_table(rotary, positions, rotary_length)
    )
    for rotary in dict.fromkeys(rotaries)
    if rotary is not None
  }

  def table(rotary, limit):
    if rotary is None:
      return None
    if limit is None:
      return tables[rotary]
    # A layer makes this one for itself. XLA makes one of all that are equal.
    return rotary_table(rotary, jnp.minimum(positions, limit), rotary_length)

  return table


def _run_layers(
  config: ModelConfig,
  params: Mapping[str, Any],
  cache: Cache,
  placement: Placement,
  x: jax.Array,
  attention_layers: Sequence[int],
) -> tuple[jax.Array, Cache, tuple[Any, ...]]:
  """Runs all layers; returns activations, cache and attention weights."""
  layout = cache.layout
  sources = [config.stream_layer(index) for index in range(len(config.layers))]
  shared = {source for index, source in enumerate(sources) if source != index}
  # A program of a layer returns no views: they hold functions.
  in_place = shared.union(attention_layers)
  if not isinstance(x, DynamicJaxprTracer):  # of a transform that is not jitted
    in_place = in_place.union(range(len(sources)))
  programs = _LayerPrograms(
    config, cache.source, placement.state, params.get('relative')
  )
  traced_once = functools.cache(programs.traced)
  books = list(cache.books)
  results: list[LayerResult] = []
  for index, (layer, source) in enumerate(
    zip(config.layers, sources, strict=True)
  ):
    layer_params = params['layers'][index]
    cross = None if cache.cross is None else cache.cross[index]
    book = layout.books[source]
    with jax.named_scope(f'layer_{index}'):
      if index != source:
        store = layout.store_of(source)
        x, result = programs.run_shared(
          layer, layer_params, x, results[source], store, cross
        )
      else:
        entry = LayerEntry(
          store=layout.store_of(index),
          book_before=placement.books_before[book],
          book=books[book],
          slots=placement.slots[book],
          leaves=cache.stores[index],
          constant=cache.constant(index),
        )
        if index in in_place:
          x, result = programs.run_own(layer, layer_params, x, entry, cross)
        else:
          x, result = traced_once(layer)(layer_params, x, entry, cross)
        books[book] = result.book
    results.append(result)
  cache = dataclasses.replace(
    cache,
    books=tuple(books),
    stores=tuple(result.leaves for result in results),
  )
  attention = [results[index].attention for index in attention_layers]
  return x, cache, tuple(result.weights() for result in attention if result)


@dataclasses.dataclass(frozen=True)
class _LayerPrograms:
  """What all layers of one call run with. Lives inside one trace.

  Attributes:
    config: the model.
    source: positions `[B, S]` of an encoder's tokens, or None.
    state: of the call.
    relative: the model's table of relative biases `[buckets, N]`, if any.
  """

  config: ModelConfig
  source: jax.Array | None
  state: CallState
  relative: jax.Array | None

  def traced(
    self, layer: Layer
  ) -> Callable[..., tuple[jax.Array, LayerResult]]:
    """Returns `run_own` of a layer, traced once for all layers that equal it.

    Only Python saves this time: XLA inlines the calls of the program. The
    result has no views and no attention.
    """

    @jax.jit
    def layer_program(layer_params, x, entry, cross):
      x, result = self.run_own(layer, layer_params, x, entry, cross)
      return x, result.leaves, result.book

    def run(layer_params, x, entry, cross):
      x, leaves, book = layer_program(layer_params, x, entry, cross)
      return x, LayerResult(leaves, book)

    return run

  def run_own(
    self,
    layer: Layer,
    layer_params: Mapping[str, Any],
    x: jax.Array,
    entry: LayerEntry,
    cross: Any,
  ) -> tuple[jax.Array, LayerResult]:
    """Runs a layer that stores its own streams."""

    def attend(x):
      return attend_through_cache(
        layer.attention,
        layer_params['attention'],
        x,
        entry,
        self.state,
        self.relative,
      )

    return self._run(layer, layer_params, x, attend, cross)

  def run_shared(
    self,
    layer: Layer,
    layer_params: Mapping[str, Any],
    x: jax.Array,
    source: LayerResult,
    store: LayerStore,
    cross: Any,
  ) -> tuple[jax.Array, LayerResult]:
    """Runs a layer that reads the streams of an earlier one."""

    def attend(x):
      return attend_to_shared(
        layer.attention,
        layer_params['attention'],
        x,
        source,
        self.state,
        store=store,
        relative=self.relative,
      )

    return self._run(layer, layer_params, x, attend, cross)

  def _run(self, layer, layer_params, x, attend, cross):
    return run_layer(
      layer,
      self.config.norm,
      layer_params,
      x,
      attend,
      cross_attention(layer, layer_params, cross, self.source),
      self.config.residual_scale,
    )
