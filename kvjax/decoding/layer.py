"""A layer's attention through its cache: remember, then read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.attention.attend import (
  Scoring,
  add_sinks,
  attend,
  attention_weights,
  merge,
  received,
)
from kvjax.attention.rotary import Rotary
from kvjax.attention.variant import Table, Variant
from kvjax.caches.kind import Kind
from kvjax.streams.codecs import Codec
from kvjax.streams.view import Stored, Streams, View


@dataclasses.dataclass(frozen=True)
class LayerStore:
  """How one layer is cached: a kind and a codec a stream. Static.

  Attributes:
    kind: where tokens go.
    codecs: `(stream name, codec)` pairs.
    dtype: of streams stored as they are.
  """

  kind: Kind
  codecs: tuple[tuple[str, Codec], ...]
  dtype: Any

  def encode(self, streams: Streams) -> Streams:
    return {n: c.encode(streams[n], self.dtype) for n, c in self.codecs}

  def decode(self, streams: Streams) -> Streams:
    return {n: c.decode(streams[n]) for n, c in self.codecs}

  def stored(self, streams: Streams) -> dict[str, Stored | None]:
    return {n: c.stored(streams[n]) for n, c in self.codecs}


@dataclasses.dataclass(frozen=True)
class Step:
  """What all layers of one call share.

  Attributes:
    positions: int32 `[B, T]` of the new tokens, -1 where there is none.
    before: int32 `[B]`, tokens of each row before the call.
    after: int32 `[B]`, and after it.
    table: rotary table of a rotary, at positions of at most a limit.
    absorb: which form of latent attention; None for the cheaper one.
    block: slots read at once; None for the kernel's choice.
    kernel: that must attend; None for the fastest.
  """

  positions: jax.Array
  before: jax.Array
  after: jax.Array
  table: Callable[[Rotary | None, int | None], Table]
  absorb: bool | None = None
  block: int | None = None
  kernel: str | None = None

  @property
  def tokens(self) -> int:
    return self.positions.shape[1]


def remember(
  memory: LayerStore,
  books: tuple[Any, Any],
  slots: Any,
  store: Streams,
  streams: Streams,
  step: Step,
) -> tuple[Streams, tuple[View, ...]]:
  """Writes new tokens and says what their queries may read.

  Where a call holds more tokens than may be written before they are read, its
  queries read the old slots and the fresh tokens, and the write comes after.

  Args:
    memory: how this layer is cached.
    books: before and after `Kind.place`.
    slots: where `Kind.place` put the tokens.
    store: this layer's leaves.
    streams: of the new tokens, `[B, K, T, H]` by name.
    step: of the call.

  Returns:
    The store and views over disjoint tokens, decoded block by block.
  """
  kind, (old, book) = memory.kind, books
  with jax.named_scope('cache'):
    new = memory.encode(streams)
    if kind.chunk is None or step.tokens <= kind.chunk:
      store = kind.write(store, new, slots)
      views = kind.views(book, store, step.after)
    else:
      views = kind.views(old, store, step.before)
      views += kind.fresh_views(new, step.positions)
      store = kind.write(store, new, slots)
  return store, tuple(view.map(memory.decode, memory.stored) for view in views)


@dataclasses.dataclass(frozen=True)
class Reading:
  """One layer's attention result and how to look closer at it."""

  out: jax.Array
  lse: jax.Array
  scoring: Scoring
  parts: tuple[tuple[Streams, tuple[View, ...]], ...]
  positions: jax.Array

  def received(self, heads: int, block: int | None) -> jax.Array:
    """Returns what each slot of the only view received, `[B, heads, S]`."""
    ((queries, (view,)),) = self.parts
    asked = queries, self.positions, self.lse
    return received(*asked, view, self.scoring, heads=heads, block=block)

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """Returns weights `[B, N, T, S]` and the slots' positions `[B, 1|K, S]`."""
    found = [
      attention_weights(queries, self.positions, self.lse, view, self.scoring)
      for queries, views in self.parts
      for view in views
    ]
    weights = jnp.concatenate([w for w, _ in found], axis=-1)
    held = jnp.concatenate([p for _, p in found], axis=-1)
    batch, heads, groups = weights.shape[:3]
    shape = (batch, heads * groups) + weights.shape[3:]
    return weights.reshape(shape), held


def read(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  views: Sequence[View],
  kind: Kind | None,
  relative: jax.Array | None,
  step: Step,
) -> tuple[jax.Array, Reading]:
  """Attends from activations `[B, T, D]` to views; returns `[B, T, D]`.

  Views scored by differently rotated queries (renumbered sinks) are attended
  apart and merged.
  """
  absorb = step.absorb
  if absorb is None:
    absorb = variant.absorbs(step.tokens)
  scoring = variant.scoring(params, relative, absorb)
  if kind is not None:
    seen = kind.visible_through(scoring.visibility)
    scoring = dataclasses.replace(scoring, visibility=seen)
  parts = _parts(variant, params, x, views, step, absorb)
  with jax.named_scope('attend'):
    out, lse = _attend_parts(parts, scoring, step)
  y = variant.project_output(params, out.astype(x.dtype), absorb)
  return y, Reading(out, lse, scoring, parts, step.positions)


def _parts(variant, params, x, views, step, absorb: bool):
  """Pairs views with the queries that score them, one pair a rotation."""

  def shown(view):
    if variant.reads_stored(absorb):
      return view
    return view.map(lambda streams: variant.expand(params, streams, absorb))

  parts = []
  for limit in dict.fromkeys(view.query_limit for view in views):
    with jax.named_scope('query'):
      table = step.table(variant.rotary, limit)
      queries = variant.project_queries(params, x, table, absorb)
    chosen = [shown(view) for view in views if view.query_limit == limit]
    parts.append((queries, tuple(chosen)))
  return tuple(parts)


def _attend_parts(parts, scoring: Scoring, step: Step):
  bare = dataclasses.replace(scoring, sinks=None)
  found = [
    attend(
      queries,
      step.positions,
      chosen,
      bare,
      block=step.block,
      kernel=step.kernel,
    )
    for queries, chosen in parts
  ]
  out, lse = found[0] if len(found) == 1 else merge(found)
  return add_sinks(out, lse, scoring.sinks)
