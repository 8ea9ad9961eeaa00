"""How queries read views: project, attend part by part, merge, project back."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from kvjax.context import PARTITION
from kvjax.decoding.layout import NOT_STORED, LayerStore
from kvjax.decoding.options import DEFAULT, DecodeOptions
from kvjax.mesh.region import constrain_heads
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
    rotary_length: of the cache, for tables that depend on it.
  """

  positions: jax.Array
  before: jax.Array
  after: jax.Array
  table: Callable[[Rotary | None, int | None], Table]
  options: DecodeOptions = DEFAULT
  rotary_length: int = 0

  @property
  def tokens(self) -> int:
    """New tokens a row, T."""
    return self.positions.shape[1]


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

  def received(
    self, heads: int, block: int | None, window: int | None = None
  ) -> jax.Array:
    """Returns what each slot of the views received, `[B, heads, S]`.

    Args:
      heads: K, or fewer for sums over neighbouring heads.
      block: slots read at once; None for the platform's choice.
      window: newest queries that count; None for all.
    """
    ((queries, views),) = self.parts
    positions, lse = self.positions, self.lse
    if window is not None and window < positions.shape[1]:
      # The newest of a row need not be the last: rows are padded.
      positions, newest = jax.lax.top_k(positions, window)
      newest = newest[:, None, None, :]
      lse = jnp.take_along_axis(lse, newest, axis=3)
      queries = {
        name: jnp.take_along_axis(q, newest[..., None], axis=3)
        for name, q in queries.items()
      }
    parts = [
      received(
        queries, positions, lse, view, self.scoring, heads=heads, block=block
      )
      for view in views
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

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


def attend_to_views(
  variant: Variant,
  params: Mapping[str, Any],
  x: jax.Array,
  views: Sequence[View],
  state: CallState,
  *,
  store: LayerStore = NOT_STORED,
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
    store: how the views are stored: its kind narrows the variant's mask, and
      queries and output are turned as its codecs say.
    relative: the model's table of relative biases, if any.
  """
  form = _form(variant, state)
  scoring = form.scoring(params, relative)
  visibility = store.kind.visible_through(scoring.visibility)
  scoring = dataclasses.replace(scoring, visibility=visibility)
  parts = []
  for limit in dict.fromkeys(view.query_limit for view in views):
    with jax.named_scope('query'):
      table = state.table(variant.rotary, limit)
      queries = form.project_queries(params, x, table)
      queries = scoring.scale_queries(queries, state.positions)
      queries = queries if form.expands else store.turn(queries)
      queries = {name: constrain_heads(q) for name, q in queries.items()}
    same_rotation = [
      _expand_view(form, params, view, store)
      for view in views
      if view.query_limit == limit
    ]
    parts.append((queries, tuple(same_rotation)))
  # The queries are scaled already, and the parts may be read again.
  scoring = dataclasses.replace(scoring, temperature=None)
  with jax.named_scope('attend'):
    out, lse = _attend_parts(parts, scoring, state)
    if not form.expands:
      out = store.turn_back({scoring.value: out})[scoring.value]
  y = form.project_output(params, constrain_heads(out.astype(x.dtype)))
  return y, AttentionResult(lse, scoring, tuple(parts), state.positions)


def _form(variant: Variant, state: CallState) -> Form:
  """Returns the form that costs least where the slots are."""
  form = variant.form(state.tokens, state.options.form)
  partition = PARTITION.value
  if form.expands and partition is not None and partition.rules['slots']:
    # Weights that expand streams are split by heads, and slots are not: every
    # device would need all of them. The form for one token reads no expansion.
    return variant.form(1, state.options.form)
  return form


def _expand_view(
  form: Form, params: Mapping[str, Any], view: View, store: LayerStore
) -> View:
  """Returns a view of the streams that a form's queries are scored against."""
  # A mapped view can no longer be read in place by a kernel.
  if not form.expands:
    return view
  return view.map(lambda x: form.expand(params, store.turn_back(x)))


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
