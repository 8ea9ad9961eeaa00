"""One layer's attention through its cache: store the new tokens, and read.

`attend_through_cache` is all of it. A kind that forgets may overwrite a slot
that an early query of the same call still reads. A call of more tokens than
such a kind can take (`Kind.chunk`) reads the old slots and the fresh tokens,
and writes after attention; any other call writes first.
A layer that shares the streams of an earlier one reads that layer's views
instead (`attend_to_shared`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from kvjax.attention.rotary import rotary_table
from kvjax.attention.variant import Variant
from kvjax.context import PARTITION
from kvjax.decoding.choosing import LayerCall
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.reading import AttentionResult, CallState, attend_to_views
from kvjax.streams.codecs import add_constant
from kvjax.streams.view import Streams, View


@struct.dataclass
class LayerEntry:
  """What one layer finds in the cache, and where its new tokens go.

  Attributes:
    store: kind and codecs, static.
    book_before: the book without the new tokens.
    book: the book with the new tokens.
    slots: where `Kind.place` put the new tokens; None for a kind that chooses
      for each layer, until it has.
    leaves: this layer's streams as they are stored, by name.
    constant: `[B, K, H]` that is taken off its keys; None for nothing.
  """

  store: LayerStore = struct.field(pytree_node=False)
  book_before: Any
  book: Any
  slots: Any
  leaves: Streams
  constant: Any = None


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
    table = state.table(variant.rotary, None) if entry.store.rotated else None
    streams = variant.project_streams(params, x, table)
  kind = entry.store.kind
  reads_first = kind.chunk is not None and state.tokens > kind.chunk
  call = LayerCall(
    variant, params, x, streams, entry.store, state, entry.constant
  )
  with jax.named_scope('cache'):
    encoded = entry.store.prepare(add_constant(streams, entry.constant, -1))
    if kind.book_per_layer:
      entry = _make_room(entry, call, reads_first)
    if not reads_first:
      # Before tokens move: XLA copies an array that is read, then written.
      entry = dataclasses.replace(entry, leaves=store_tokens(entry, encoded))
    leaves = entry.store.move(entry.leaves, encoded, entry.slots)
    entry = dataclasses.replace(entry, leaves=leaves)
    if reads_first:
      views = view_old_and_fresh(entry, encoded, state)
    else:
      views = view_stored(entry, leaves, state)
    if not entry.store.rotated:
      views = tuple(_rotate(view, variant, entry, state) for view in views)
  y, attention = attend_to_views(
    variant, params, x, views, state, store=entry.store, relative=relative
  )
  with jax.named_scope('cache'):
    if reads_first and kind.book_per_layer:
      book, slots = call.choose(entry.book, entry.leaves, attention)
      entry = dataclasses.replace(entry, book=book, slots=slots)
    elif kind.book_per_layer:
      book = call.observe(entry.book, leaves, attention)
      entry = dataclasses.replace(entry, book=book)
    if reads_first:
      slots = _after(state, attention.lse, entry.slots)
      leaves = store_tokens(dataclasses.replace(entry, slots=slots), encoded)
      y = _after(state, leaves, y)
  return y, LayerResult(leaves, entry.book, views, attention)


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


def view_old_and_fresh(
  entry: LayerEntry, encoded: Streams, state: CallState
) -> tuple[View, ...]:
  """Returns views of the slots before the call, and of tokens not yet written.

  Args:
    entry: the layer's part of the cache.
    encoded: streams of the new tokens as they are stored, by name.
    state: of the call.

  Returns:
    Views over disjoint tokens, which decode what they fetch.
  """
  kind = entry.store.kind
  old, new = (entry.book_before, state.before), (entry.book, state.after)
  views = kind.views_before_write(old, new, entry.leaves)
  return entry.store.read(views + kind.fresh_views(encoded, state.positions))


def store_tokens(entry: LayerEntry, encoded: Streams) -> Streams:
  """Returns the layer's leaves with new tokens in their slots.

  Args:
    entry: the layer's part of the cache.
    encoded: streams of the new tokens as they are stored, by name.
  """
  return entry.store.kind.write(entry.leaves, encoded, entry.slots)


def view_stored(
  entry: LayerEntry, leaves: Streams, state: CallState
) -> tuple[View, ...]:
  """Returns views of all slots after the new tokens were written.

  Args:
    entry: the layer's part of the cache.
    leaves: with the new tokens.
    state: of the call.
  """
  store = entry.store
  return store.read(store.kind.views(entry.book, leaves, state.after))


def _rotate(
  view: View, variant: Variant, entry: LayerEntry, state: CallState
) -> View:
  """Returns a view of keys that were stored before rotation, as queries need.

  No kernel reads it in place: every block is rotated when it is fetched.
  """

  def rotate(streams, positions):
    table = rotary_table(variant.rotary, positions[:, 0], state.rotary_length)
    return variant.rotate_streams(add_constant(streams, entry.constant), table)

  return view.map_with_positions(rotate)


def _after(state: CallState, first: Any, then: Any) -> Any:
  """Returns `then`, which a program has only when it has `first`.

  A leaf that is read and then overwritten is copied, unless XLA sees that the
  write needs a result of the read. And tokens that wait to be written are
  memory, for which XLA would let them wait until all layers are done. It drops
  a barrier before it decides on either.
  """
  if PARTITION.value is not None:  # devices would have to exchange a number
    return then
  leaves = jax.tree.leaves(first)
  one = jnp.stack([x[(0,) * x.ndim].astype(jnp.float32) for x in leaves]).sum()
  never = state.before[0] < 0
  return jax.tree.map(lambda x: jnp.where(never, one.astype(x.dtype), x), then)


def _make_room(
  entry: LayerEntry, call: LayerCall, reads_first: bool
) -> LayerEntry:
  """Returns the entry of a kind that chooses for each layer, room made.

  New tokens are in its book, unless they are read before they are written.
  """
  book = call.make_room(entry.book_before, entry.leaves)
  placed, slots = book, None
  if not reads_first:
    state = call.state
    placed, slots = entry.store.kind.place(book, state.before, state.positions)
  return dataclasses.replace(entry, book_before=book, book=placed, slots=slots)
