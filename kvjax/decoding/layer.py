"""One layer's attention through its cache: store the new tokens, then read.

`attend_through_cache` is all of it. A layer that shares the streams of an
earlier one reads that layer's views instead (`attend_to_shared`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kvjax.attention.attend import (
  add_sinks,
  attend,
  attention_weights,
  merge,
  received,
)
from kvjax.attention.rotary import Rotary
from kvjax.attention.variant import Form, Table, Variant
from kvjax.caches.kind import Kind
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.options import DEFAULT, DecodeOptions
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

# Queries rotated in one way, and the views that they are scored against.
Part = tuple[Streams, tuple[View, ...]]


@dataclasses.dataclass(frozen=True)
class CallState:
  """What all layers of one call share. Lives inside one trace.

  Attributes:
    positions: int32 `[B, T]` of the new tokens, -1 where there is none.
    before: int32 `[B]`, tokens of each row before the call.
    after: int32 `[B]`, tokens of each row after the call.
    table: `(rotary, limit)` -> the rotary table at the positions, each of them
      at most `limit` (None for no limit).
    options: of the call.
  """

  positions: jax.Array
  before: jax.Array
  after: jax.Array
  table: Callable[[Rotary | None, int | None], Table]
  options: DecodeOptions = DEFAULT

  @property
  def tokens(self) -> int:
    """New tokens a row, T."""
    return self.positions.shape[1]


@dataclasses.dataclass(frozen=True)
class LayerEntry:
  """What one layer finds in the cache, and where its new tokens go.

  Attributes:
    store: kind and codecs, static.
    book_before: the book without the new tokens.
    book: the book with the new tokens.
    slots: where `Kind.place` put the new tokens.
    leaves: this layer's streams as they are stored, by name.
  """

  store: LayerStore
  book_before: Any
  book: Any
  slots: Any
  leaves: Streams


@dataclasses.dataclass(frozen=True)
class AttentionResult:
  """The result of one layer's attention, and what it was computed from.

  Attributes:
    lse: float32 `[B, K, G, T]`, log-sum-exp of the scores.
    scoring: scale, mask, bias and sinks.
    parts: queries with the views that they were scored against.
    positions: int32 `[B, T]` of the queries.
  """

  lse: jax.Array
  scoring: Scoring
  parts: tuple[Part, ...]
  positions: jax.Array

  def received(self, heads: int, block: int | None) -> jax.Array:
    """Returns what each slot of the only view received, `[B, heads, S]`."""
    ((queries, (view,)),) = self.parts
    return received(
      queries,
      self.positions,
      self.lse,
      view,
      self.scoring,
      heads=heads,
      block=block,
    )

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """Returns weights `[B, N, T, S]` and the slots' positions `[B, 1|K, S]`."""
    results = [
      attention_weights(queries, self.positions, self.lse, view, self.scoring)
      for queries, views in self.parts
      for view in views
    ]
    weights = jnp.concatenate([w for w, _ in results], axis=-1)
    slot_positions = jnp.concatenate([p for _, p in results], axis=-1)
    batch, heads, groups = weights.shape[:3]
    shape = (batch, heads * groups) + weights.shape[3:]
    return weights.reshape(shape), slot_positions


class LayerResult(NamedTuple):
  """What a layer leaves for the cache and for later layers.

  Attributes:
    leaves: the layer's streams after the call; empty if it shares others'.
    book: after the call and its eviction.
    views: what the layer's queries read, for layers that share its streams.
    attention: of the layer.
  """

  leaves: Streams
  book: Any
  views: tuple[View, ...]
  attention: AttentionResult


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
  kind = entry.store.kind
  y, attention = attend_to_views(
    variant, params, x, views, state, kind=kind, relative=relative
  )
  book = _evict(kind, entry.book, attention, state)
  return y, LayerResult(leaves, book, views, attention)


def attend_to_shared(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  source: LayerResult,
  state: CallState,
  *,
  kind: Kind,
  relative: jax.Array | None = None,
) -> tuple[jax.Array, LayerResult]:
  """Attends to what an earlier layer stored; stores nothing.

  Args:
    variant, params, x, state, relative: as in `attend_through_cache`.
    source: result of the layer whose streams this one reads.
    kind: of that layer.
  """
  y, attention = attend_to_views(
    variant, params, x, source.views, state, kind=kind, relative=relative
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


def attend_to_views(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  views: Sequence[View],
  state: CallState,
  *,
  kind: Kind | None = None,
  relative: jax.Array | None = None,
) -> tuple[jax.Array, AttentionResult]:
  """Attends from activations `[B, T, D]` to views; returns `[B, T, D]`.

  Views whose queries are rotated differently (the sinks of a renumbered cache)
  are attended to one after the other, and the results are merged.

  Args:
    variant: the attention.
    params: its parameters.
    x: `[B, T, D]`.
    views: of disjoint tokens.
    state: of the call.
    kind: whose mask narrows the variant's own; None for no kind.
    relative: the model's table of relative biases, if any.
  """
  form = variant.form(state.tokens, state.options.form)
  scoring = form.scoring(params, relative)
  if kind is not None:
    visibility = kind.visible_through(scoring.visibility)
    scoring = dataclasses.replace(scoring, visibility=visibility)
  parts = []
  for limit in dict.fromkeys(view.query_limit for view in views):
    with jax.named_scope('query'):
      table = state.table(variant.rotary, limit)
      queries = form.project_queries(params, x, table)
    same_rotation = [
      _expand_view(form, params, view)
      for view in views
      if view.query_limit == limit
    ]
    parts.append((queries, tuple(same_rotation)))
  with jax.named_scope('attend'):
    out, lse = _attend_parts(parts, scoring, state)
  y = form.project_output(params, out.astype(x.dtype))
  return y, AttentionResult(lse, scoring, tuple(parts), state.positions)


def _expand_view(form: Form, params: Mapping[str, Any], view: View) -> View:
  """Returns a view of the streams that a form's queries are scored against."""
  # A mapped view can no longer be read in place by a kernel.
  if not form.expands:
    return view
  return view.map(lambda streams: form.expand(params, streams))


def _attend_parts(
  parts: Sequence[Part], scoring: Scoring, state: CallState
) -> tuple[jax.Array, jax.Array]:
  # The sinks join the softmax once, after all parts are merged.
  without_sinks = dataclasses.replace(scoring, sinks=None)
  results = [
    attend(
      queries,
      state.positions,
      views,
      without_sinks,
      block=state.options.block,
      kernel=state.options.kernel,
    )
    for queries, views in parts
  ]
  out, lse = results[0] if len(results) == 1 else merge(results)
  return add_sinks(out, lse, scoring.sinks)


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
