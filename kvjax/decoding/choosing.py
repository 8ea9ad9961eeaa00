"""What a kind that chooses its tokens is shown in one layer's call.

A kind with a book a layer makes room before new tokens are written, and keeps a
statistic after they were read; a call that is longer than the kind may write is
read whole first. Its evidence is made here of what the layer has at hand.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.attention.rotary import rotary_table
from kvjax.attention.variant import Variant
from kvjax.caches.evidence import Evidence
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.reading import AttentionResult, CallState
from kvjax.streams.view import Streams, contiguous_view, fresh_view


@dataclasses.dataclass(frozen=True)
class LayerCall:
  """One layer's part of a call. Lives inside one trace.

  Attributes:
    variant: the attention.
    params: its parameters.
    x: normalised activations `[B, T, D]` of the new tokens.
    streams: of the new tokens, before a codec rounds them.
    store: kind and codecs.
    state: of the call.
    constant: that is taken off the keys, `[B, K, H]`; None for nothing.
  """

  variant: Variant
  params: Mapping[str, Any]
  x: jax.Array
  streams: Streams
  store: LayerStore
  state: CallState
  constant: jax.Array | None = None

  def make_room(self, book: Any, leaves: Streams) -> Any:
    """Returns the book without what must leave before the new tokens come."""
    evidence = self._evidence(book, leaves)
    evidence = dataclasses.replace(evidence, length=self.state.before, tokens=0)
    kind, positions = self.store.kind, self.state.positions
    return kind.make_room(book, evidence, positions)

  def observe(
    self, book: Any, leaves: Streams, attention: AttentionResult
  ) -> Any:
    """Returns the book after the queries of the call have read its slots."""
    evidence = self._evidence(book, leaves, attention)
    return self.store.kind.observe(book, evidence)

  def choose(
    self, book: Any, leaves: Streams, attention: AttentionResult
  ) -> tuple[Any, Any]:
    """Returns book and slots of the new tokens after a call was read whole."""
    evidence = self._evidence(book, leaves, attention, self.streams)
    return self.store.kind.choose(book, evidence, self.state.positions)

  def _evidence(
    self,
    book: Any,
    leaves: Streams,
    attention: AttentionResult | None = None,
    fresh: Streams | None = None,
  ) -> Evidence:
    """Returns evidence of stored slots, then of tokens not yet written."""
    state = self.state
    kind: Any = self.store.kind
    positions, total = book.positions, getattr(book, 'total', None)
    heads = positions.shape[1]
    if fresh is not None:
      shape = (len(positions), heads, state.tokens)
      new = jnp.broadcast_to(state.positions[:, None], shape)
      positions = jnp.concatenate([positions, new], axis=-1)
      if total is not None:
        total = jnp.concatenate([total, jnp.zeros(shape, total.dtype)], axis=-1)

    form = join_streams(self.variant, self.params, self.x)
    stored = contiguous_view(leaves, book.positions, book.positions.shape[2])
    parts = ((stored, lambda x: form(self.store.restore(x, self.constant))),)
    if fresh is not None:
      parts += ((fresh_view(fresh, state.positions), form),)

    def read_weights():
      assert attention is not None
      window = kind.score.window
      return attention.received(heads, state.options.block, window)

    def read_queries(future, start, size):
      assert attention is not None
      x, at = (
        jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        for x in (self.x, state.positions)
      )
      return self._queries(x, future, attention.scoring.scale), at

    count = state.after - state.before
    competes = jnp.zeros_like(count, bool)
    if kind.chunk is not None:
      competes = count > kind.chunk
    return Evidence(
      positions=positions,
      length=state.after,
      before=state.before,
      is_prompt=(state.before == 0) | competes,
      tokens=state.tokens,
      total=total,
      parts=parts,
      read_weights=read_weights,
      read_queries=read_queries,
    )

  def _queries(self, x: jax.Array, future: int, scale: float) -> jax.Array:
    """Returns queries as `Evidence.queries` describes them."""
    table, rotary = None, self.variant.rotary
    if future and rotary is not None:
      steps = jnp.arange(future, dtype=jnp.int32)[None, :]
      positions = self.state.after[:, None] + steps
      table = rotary_table(rotary, positions, self.state.rotary_length)
      # A rotation is linear in its cosines and sines.
      table = jax.tree.map(lambda x: x.mean(axis=1, keepdims=True), table)
    form = self.variant.form(1)  # that reads streams as they are stored
    queries = form.project_queries(self.params, x, table)
    joined = jnp.concatenate(list(queries.values()), axis=-1)
    return joined.astype(jnp.float32) * scale


def join_streams(
  variant: Variant, params: Mapping[str, Any], x: jax.Array
) -> Callable[[Streams], tuple[jax.Array, jax.Array]]:
  """Returns what makes keys `[B, K, S, H]` and values of streams.

  Args:
    variant: the attention.
    params: its parameters.
    x: any activations `[B, T, D]` of its width.
  """
  form = variant.form(1)  # that reads streams as they are stored
  table = None
  if variant.rotary is not None:
    zero = jnp.zeros((1, 1), jnp.int32)
    table = rotary_table(variant.rotary, zero, 1)
  names = jax.eval_shape(lambda: form.project_queries(params, x[:1, :1], table))
  value = form.scoring(params, None).value if variant.bias is None else 'value'

  def join(streams: Streams) -> tuple[jax.Array, jax.Array]:
    keys = [streams[name].astype(jnp.float32) for name in names]
    values = streams[value].astype(jnp.float32)
    return jnp.concatenate(keys, axis=-1), values

  return join
