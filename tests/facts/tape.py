"""A kind with tokens in it and no model: values one can read off.

Stores begin as NaN, so that whatever is read of a slot without a token shows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from kvjax.caches.array_spec import ArraySpec
from kvjax.caches.evidence import Evidence
from kvjax.caches.kind import Kind
from kvjax.decoding.layer import (
  LayerEntry,
  store_tokens,
  view_old_and_fresh,
  view_stored,
)
from kvjax.decoding.layout import LayerStore
from kvjax.decoding.reading import CallState
from kvjax.streams.codecs import Plain


@struct.dataclass
class Tape:
  """What a kind holds, and what the last call offered to its queries.

  Attributes:
    length: int32 `[B]`.
    book: of the kind.
    store: one stream `value`, `[B, K, S, 1]` or a pool.
    offered: positions `[B, 1 | K, S']` and values `[B, K, S']`.
  """

  length: jax.Array
  book: Any
  store: Any
  offered: Any = ()


def blank(kind: Kind, batch: int = 1, heads: int = 1) -> Tape:
  """Returns an empty tape of a bound kind."""
  book = jax.tree.map(
    ArraySpec.allocate,
    kind.book(batch, heads),
    is_leaf=lambda x: isinstance(x, ArraySpec),
  )
  lead = tuple(size for size, _ in kind.leaf_axes(batch, heads))
  store = {'value': jnp.full(lead + (1,), jnp.nan)}
  return Tape(jnp.zeros(batch, jnp.int32), book, store)


def evidence(
  book: Any, before: Any, after: Any, weights: Any = None
) -> Evidence:
  """Returns evidence of a book's slots, which received `weights`."""
  before, after = (jnp.asarray(n, jnp.int32) for n in (before, after))
  return Evidence(
    positions=book.positions,
    length=after,
    before=before,
    is_prompt=before == 0,
    tokens=1,
    total=book.total,
    parts=(),
    read_weights=lambda: weights,
    read_queries=lambda *_: (),
  )


def feed(kind: Kind, tape: Tape, values: Any, lengths: Any = None) -> Tape:
  """Returns the tape after one call with values `[T]` or `[B, T]`."""
  values = np.asarray(values, np.float32)
  values = np.broadcast_to(values, (len(tape.length), values.shape[-1]))
  if lengths is None:
    lengths = np.full(len(values), values.shape[1])
  return _feed(kind, tape, values, np.asarray(lengths, np.int32))


@functools.partial(jax.jit, static_argnums=0)
def _feed(kind, tape, values, lengths):
  steps = jnp.arange(values.shape[1], dtype=jnp.int32)[None, :]
  is_token = steps < lengths[:, None]
  positions = jnp.where(is_token, tape.length[:, None] + steps, -1)
  book = tape.book
  if kind.book_per_layer:
    shown = evidence(book, tape.length, tape.length)
    book = kind.make_room(book, shown, positions)
  book, slots = kind.place(book, tape.length, positions)
  axis = [name for _, name in kind.leaf_axes(1, 1)].index('kv_heads')
  heads = tape.store['value'].shape[axis]
  new = jnp.broadcast_to(
    values[:, None, :, None], (len(values), heads, values.shape[1], 1)
  )
  state = CallState(
    positions, tape.length, tape.length + lengths, lambda *_: None
  )
  entry = LayerEntry(
    store=LayerStore(kind, (('value', Plain()),), jnp.float32),
    book_before=tape.book,
    book=book,
    slots=slots,
    leaves=tape.store,
  )
  store = store_tokens(entry, {'value': new})
  if kind.chunk is not None and state.tokens > kind.chunk:
    views = view_old_and_fresh(entry, {'value': new}, state)
  else:
    views = view_stored(entry, store, state)
  found = [view.fetch(0, view.slots) for view in views]
  offered = (
    jnp.concatenate([positions for _, positions in found], axis=2),
    jnp.concatenate([x['value'][..., 0] for x, _ in found], axis=2),
  )
  return Tape(state.after, book, store, offered)


def offered(tape: Tape, row: int = 0) -> dict[int, float]:
  """Returns position -> value of what the last call could read."""
  positions, values = tape.offered
  return _pairs(np.asarray(positions)[row, 0], np.asarray(values)[row, 0])


def stored(kind: Kind, tape: Tape, row: int = 0) -> dict[int, float]:
  """Returns position -> value of what the tape holds."""
  found = [
    view.fetch(0, view.slots)
    for view in kind.views(tape.book, tape.store, tape.length)
  ]
  pairs: dict[int, float] = {}
  for streams, positions in found:
    values = np.asarray(streams['value'])[row, 0, :, 0]
    pairs |= _pairs(np.asarray(positions)[row, 0], values)
  return pairs


def seen(kind: Kind, tape: Tape, query: int, rule: Any, row: int = 0) -> list:
  """Returns the values that a query at that position sees, oldest first."""
  pairs = offered(tape, row)
  keys = np.asarray(sorted(pairs), np.int32)
  mask = np.asarray(kind.visible_through(rule).sees(np.int32(query), keys))
  return [pairs[int(p)] for p in keys[mask]]


def slots(tape: Tape, row: int = 0) -> list[int]:
  """Returns the position that each slot of the only book row holds."""
  return np.asarray(tape.book.positions)[row, 0].tolist()


def _pairs(positions: np.ndarray, values: np.ndarray) -> dict[int, float]:
  live = positions >= 0
  pairs = dict(
    zip(positions[live].tolist(), values[live].tolist(), strict=True)
  )
  assert len(pairs) == live.sum(), 'A position stands in two slots.'
  return pairs
