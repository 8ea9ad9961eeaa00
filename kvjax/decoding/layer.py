"""One layer's attention through its cache: store the new tokens, then read.

`attend_through_cache` is all of it. A layer that shares the streams of an
earlier one reads that layer's views instead (`attend_to_shared`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.attention.variant import Variant
from kvjax.caches.kind import Kind
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.reading import AttentionResult, CallState, attend_to_views
from kvjax.streams.view import Streams, View


@struct.dataclass
class LayerEntry:
  """What one layer finds in the cache, and where its new tokens go.

  Attributes:
    store: kind and codecs, static.
    book_before: the book without the new tokens.
    book: the book with the new tokens.
    slots: where `Kind.place` put the new tokens.
    leaves: this layer's streams as they are stored, by name.
  """

  store: LayerStore = struct.field(pytree_node=False)
  book_before: Any
  book: Any
  slots: Any
  leaves: Streams


class LayerResult(NamedTuple):
  """What a layer leaves for the cache and for later layers.

  Attributes:
    leaves: the layer's streams after the call; empty if it shares others'.
    book: after the call and its eviction.
    views: what the layer's queries read, for layers that share its streams.
    attention: of the layer, for its weights; None where nobody reads them.
  """

  leaves: Streams
  book: Any
  views: tuple[View, ...] = ()
  attention: AttentionResult | None = None


def attend_through_cache(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  entry: LayerEntry,
  state: CallState,
  relative: jax.Array | None = None,
) -> tuple[jax.Array, LayerResult]:
  """Stores what new tokens leave behind, and attends to all of the cache.

  Args:
    variant: the attention.
    params: its parameters.
    x: normalised activations `[B, T, D]` of the new tokens.
    entry: the layer's part of the cache.
    state: of the call.
    relative: the model's table of relative biases `[buckets, N]`, if any.

  Returns:
    `[B, T, D]`, and the layer's part of the cache after the call.
  """
  with jax.named_scope('streams'):
    table = state.table(variant.rotary, None)
    streams = variant.project_streams(params, x, table)
  leaves, views = store_tokens(entry, streams, state)
  y, attention = attend_to_views(
    variant, params, x, views, state, store=entry.store, relative=relative
  )
  book = _evict(entry.store.kind, entry.book, attention, state)
  return y, LayerResult(leaves, book, views, attention)


def attend_to_shared(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  source: LayerResult,
  state: CallState,
  *,
  store: LayerStore,
  relative: jax.Array | None = None,
) -> tuple[jax.Array, LayerResult]:
  """Attends to what an earlier layer stored; stores nothing.

  Args:
    variant, params, x, state, relative: as in `attend_through_cache`.
    source: result of the layer whose streams this one reads.
    store: how that layer is cached.
  """
  y, attention = attend_to_views(
    variant, params, x, source.views, state, store=store, relative=relative
  )
  return y, source._replace(leaves={}, attention=attention)


def store_tokens(
  entry: LayerEntry, streams: Streams, state: CallState
) -> tuple[Streams, tuple[View, ...]]:
  """Writes new tokens, and returns what their queries may read.

  A kind that forgets may overwrite a slot that an early query of the same call
  still reads. A call of more tokens than such a kind can take (`Kind.chunk`)
  reads the old slots and the fresh tokens, and writes afterwards.

  Args:
    entry: the layer's part of the cache.
    streams: of the new tokens, `[B, K, T, H]` by name.
    state: of the call.

  Returns:
    The leaves after the call, and views over disjoint tokens, which decode
    what they fetch.
  """
  store = entry.store
  kind = store.kind
  with jax.named_scope('cache'):
    encoded = store.encode(streams)
    if kind.chunk is None or state.tokens <= kind.chunk:
      leaves = kind.write(entry.leaves, encoded, entry.slots)
      views = kind.views(entry.book, leaves, state.after)
    else:
      views = kind.views(entry.book_before, entry.leaves, state.before)
      views += kind.fresh_views(encoded, state.positions)
      leaves = kind.write(entry.leaves, encoded, entry.slots)
  return leaves, tuple(view.map(store.decode, store.stored) for view in views)


def _evict(
  kind: Kind, book: Any, attention: AttentionResult, state: CallState
) -> Any:
  """Returns a layer's book without the slots that its kind gives up."""
  weights = None
  if kind.observes:  # a number for every slot that holds a position
    weights = attention.received(book.positions.shape[1], state.options.block)
  after = state.after
  if kind.book_per_layer and not kind.observes:
    # Eviction must depend on attention's result. If it does not, XLA may
    # schedule it first, and then copies the positions that attention still
    # reads and eviction overwrites.
    has_seen = jnp.any(attention.lse != -jnp.inf, axis=(1, 2, 3))
    after = jnp.where(has_seen, after, state.before)
  return kind.evict(book, weights, state.before, after)
