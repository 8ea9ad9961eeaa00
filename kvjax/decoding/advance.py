"""One call of a decoder through its cache: the traced heart of decoding."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

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
from kvjax.decoding.options import DecodeOptions
from kvjax.decoding.reading import CallState
from kvjax.decoding.source import cross_attention
from kvjax.models.config import Layer, ModelConfig
from kvjax.models.decoder import embed, run_layer


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the tokens of one call go, decided once for all layers.

  Attributes:
    books_before: books without the tokens; those of the cache hold them.
    slots: of the tokens, one entry a book.
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
  chunk = cache.layout.chunk
  if chunk is not None and chunk < tokens.shape[1]:
    _refuse_weights_by_chunks(attention_layers, tokens.shape[1], chunk)
    return _advance_by_chunks(
      config, params, cache, tokens, is_token, options, chunk
    )
  return _advance_at_once(
    config, params, cache, tokens, is_token, options, attention_layers
  )


def _advance_at_once(
  config, params, cache, tokens, is_token, options, attention_layers=()
):
  """Feeds a call, or a piece of one, whose tokens a cache takes at once."""
  cache, placement = place_tokens(cache, is_token, options)
  x = embed(config, params, tokens, placement.state.positions)
  x, cache, weights = _run_layers(
    config, params, cache, placement, x, attention_layers
  )
  lost = cache.overflow
  if cache.source is not None:
    lost |= jnp.all(cache.source < 0, axis=1)
  return jnp.where(lost[:, None, None], jnp.nan, x), cache, weights


def _refuse_weights_by_chunks(layers, tokens: int, chunk: int) -> None:
  if layers:
    raise ValueError(
      f'attention_layers={layers} of {tokens} tokens at once: this cache '
      f'evicts every {chunk}. Feed at most {chunk} tokens a call.'
    )


def _advance_by_chunks(config, params, cache, tokens, is_token, options, chunk):
  """Feeds a long call piece by piece, for a kind that evicts between them."""
  # A row that does not fit is dropped whole: no piece of it is written.
  cache, is_token = _admit(cache, is_token)
  batch, length = tokens.shape
  count = -(-length // chunk)
  pad = ((0, 0), (0, count * chunk - length))

  def split(x):
    return jnp.moveaxis(jnp.pad(x, pad).reshape(batch, count, chunk), 1, 0)

  def feed(cache, piece):
    piece_tokens, piece_is_token = piece
    x, cache, _ = _advance_at_once(
      config, params, cache, piece_tokens, piece_is_token, options
    )
    return cache, x

  cache, x = jax.lax.scan(feed, cache, (split(tokens), split(is_token)))
  x = jnp.moveaxis(x, 0, 1).reshape(batch, count * chunk, -1)
  return x[:, :length], cache, ()


def place_tokens(
  cache: Cache, is_token: jax.Array, options: DecodeOptions
) -> tuple[Cache, Placement]:
  """Returns the cache with tokens `[B, T]` in its books, and where they go."""
  before = cache.length
  with jax.named_scope('place'):
    cache, is_token = _admit(cache, is_token)
    order = jnp.cumsum(is_token.astype(jnp.int32), axis=1) - 1
    positions = jnp.where(is_token, before[:, None] + order, -1)
    after = before + jnp.sum(is_token, axis=1, dtype=jnp.int32)
    placed = [
      kind.place(book, before, positions)
      for kind, book in zip(cache.layout.kinds(), cache.books, strict=True)
    ]
  placement = Placement(
    books_before=cache.books,
    slots=tuple(slots for _, slots in placed),
    state=CallState(
      positions=positions,
      before=before,
      after=after,
      table=_rotary_tables(positions, cache.layout.rotary_length),
      options=options,
    ),
  )
  books = tuple(book for book, _ in placed)
  return dataclasses.replace(cache, length=after, books=books), placement


def _admit(cache: Cache, is_token: jax.Array) -> tuple[Cache, jax.Array]:
  """Returns the cache and `is_token [B, T]` without rows that do not fit whole.

  A row fits if every kind has room for all of its tokens. The rows that do not
  fit are flagged.
  """
  count = jnp.sum(is_token, axis=1, dtype=jnp.int32)
  fits = jnp.ones_like(cache.overflow)
  if cache.layout.limit is not None:
    fits = (cache.length + count <= cache.layout.limit) | (count == 0)
  for kind, book in zip(cache.layout.kinds(), cache.books, strict=True):
    # A row that is refused already must not take pages from the others.
    fits &= kind.has_room(book, cache.length, jnp.where(fits, count, 0))
  cache = dataclasses.replace(cache, overflow=cache.overflow | ~fits)
  return cache, is_token & fits[:, None]


def _rotary_tables(
  positions: jax.Array, rotary_length: int
) -> Callable[[Rotary | None, int | None], Table]:
  """Returns a function that makes each rotary table once a call."""
  tables: dict[Any, Table] = {}

  def table(rotary, limit):
    if rotary is None:
      return None
    if (rotary, limit) not in tables:
      limited = positions if limit is None else jnp.minimum(positions, limit)
      tables[rotary, limit] = rotary_table(rotary, limited, rotary_length)
    return tables[rotary, limit]

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
  state = placement.state
  relative = params.get('relative')
  books = list(cache.books)
  results: list[LayerResult] = []
  for index, layer in enumerate(config.layers):
    layer_params = params['layers'][index]
    source = config.stream_layer(index)
    store = cache.layout.store_of(source)
    book = cache.layout.books[source]
    if index == source:
      entry = LayerEntry(
        store=store,
        book_before=placement.books_before[book],
        book=books[book],
        slots=placement.slots[book],
        leaves=cache.stores[index],
      )
      attend = _own_attention(layer, layer_params, entry, state, relative)
    else:
      attend = functools.partial(
        attend_to_shared,
        layer.attention,
        layer_params['attention'],
        source=results[source],
        state=state,
        kind=store.kind,
        relative=relative,
      )
    with jax.named_scope(f'layer_{index}'):
      x, result = run_layer(
        layer,
        config.norm,
        layer_params,
        x,
        attend,
        cross_attention(cache, layer, layer_params, index),
        config.residual_scale,
      )
    results.append(result)
    if index == source:
      books[book] = result.book
  cache = dataclasses.replace(
    cache,
    books=tuple(books),
    stores=tuple(result.leaves for result in results),
  )
  weights = tuple(results[i].attention.weights() for i in attention_layers)
  return x, cache, weights


def _own_attention(
  layer: Layer,
  layer_params: Mapping[str, Any],
  entry: LayerEntry,
  state: CallState,
  relative: jax.Array | None,
) -> Callable[[jax.Array], tuple[jax.Array, LayerResult]]:
  """Returns the attention of a layer that stores its own streams."""

  def attend(x):
    return attend_through_cache(
      layer.attention, layer_params['attention'], x, entry, state, relative
    )

  return attend
