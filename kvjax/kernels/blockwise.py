"""Attention block by block in plain JAX: every platform, every view.

Online softmax over blocks of slots (Milakov and Gimelshein 2018, arXiv
1805.02867; FlashAttention, arXiv 2205.14135, algorithm 1). The trip count of
the loop is that of the filled blocks, so time follows the filled length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kvjax.context import target
from kvjax.kernels.kernel import Kernel
from kvjax.kernels.log_sum_exp import finite, normalize
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import (
  Streams,
  View,
  by_row,
  contiguous_view,
  positions_by_row,
)

BLOCK = 128  # slots of one iteration: their scores stay in the second cache
DECODED = 512  # slots of codes that an accelerator decodes at once
SPLIT = 64  # slots of a piece, where few rows of weights multiply values
QUERY_BLOCK = 256  # tokens of a long prefill that share one pass over the keys
QUERIES_FIRST = 128  # query rows from which a CPU multiplies queries first


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view, block by block.

  Args:
    queries: for each key stream its queries `[B, K, G, T, H]`.
    positions: `[B, T]`, -1 for a row that is no token and sees nothing.
    view: the slots.
    scoring: scale, mask and bias.
    block: slots read at once; None for the platform's choice.

  Returns:
    Output `[B, K, G, T, E]` and log-sum-exp `[B, K, G, T]`, float32.
  """
  tokens = positions.shape[1]
  if tokens <= QUERY_BLOCK:
    return _attend_rows(queries, positions, view, scoring, block)
  # Scores stay small and, where slots are ordered, a block stops at its last
  # position.
  return by_query_blocks(
    lambda queries, positions: _attend_rows(
      queries, positions, view, scoring, block
    ),
    queries,
    positions,
  )


def by_query_blocks(
  run: Callable[[Streams, jax.Array], tuple[jax.Array, jax.Array]],
  queries: Streams,
  positions: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns what `run` makes of one block of a long prefill after another.

  Args:
    run: queries and positions -> arrays `[B, K, G, T, ...]`.
    queries: for each key stream its queries `[B, K, G, T, H]`.
    positions: `[B, T]`, -1 for a row that is no token.
  """
  blocks = (
    jax.tree.map(lambda q: _query_blocks(q, 3), queries),
    _query_blocks(positions, 1, -1),
  )
  parts = jax.lax.map(lambda block: run(*block), blocks)

  def join(x):
    x = jnp.moveaxis(x, 0, 3)
    x = x.reshape(x.shape[:3] + (-1,) + x.shape[5:])
    return x[:, :, :, : positions.shape[1]]

  return jax.tree.map(join, parts)


def _query_blocks(x: jax.Array, axis: int, fill: int = 0) -> jax.Array:
  """Returns `[blocks, ...]`: an axis of tokens cut into blocks of queries.

  The last block is filled up.
  """
  count = -(-x.shape[axis] // QUERY_BLOCK)
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, count * QUERY_BLOCK - x.shape[axis])
  x = jnp.pad(x, widths, constant_values=fill)
  shape = x.shape[:axis] + (count, QUERY_BLOCK) + x.shape[axis + 1 :]
  return jnp.moveaxis(x.reshape(shape), axis, 0)


def _attend_rows(queries, positions, view, scoring, block):
  rows, size = _rows(queries), _block_size(view, block)
  groups, tokens = next(iter(queries.values())).shape[2:4]
  lead = next(iter(rows.values())).shape[:3]  # [B, K, G T]
  width = jax.eval_shape(lambda: view.fetch(0, size)[0])[scoring.value].shape

  def body(i, carry):
    top, total, out = carry
    streams, keys, _ = _fetch(view, i, size)
    scores, seen = _scores(rows, streams, positions, keys, scoring, view)
    new = jnp.maximum(top, jnp.max(scores, axis=-1))
    shift = finite(new)
    weights = jnp.where(seen, jnp.exp(scores - shift[..., None]), 0.0)
    values = _wide(streams[scoring.value])
    # An empty slot may hold NaN, and 0, its weight, times NaN would be NaN.
    has_token = (keys >= 0)[..., None]
    values = jnp.where(has_token, values, jnp.zeros_like(values))
    keep = jnp.exp(top - shift)
    out = out * keep[..., None] + _weigh(weights, values)
    return new, total * keep + weights.sum(axis=-1), out

  carry = (
    jnp.full(lead, -jnp.inf, jnp.float32),
    jnp.zeros(lead, jnp.float32),
    jnp.zeros(lead + width[-1:], jnp.float32),
  )
  filled = view.filled
  if view.ordered and tokens > 1:
    filled = jnp.minimum(filled, jnp.max(positions) + 1)
  out, lse = normalize(*_loop(view, size, filled, body, carry))
  shape = lead[:2] + (groups, tokens)
  return out.reshape(shape + out.shape[-1:]), lse.reshape(shape)


def _weigh(weights: jax.Array, values: jax.Array) -> jax.Array:
  """Returns `weights [B, K, R, S] @ values [B, K, S, E]`, float32."""
  weights = weights.astype(values.dtype)
  formula, split = 'BKRS,BKSE->BKRE', weights.shape[-1] % SPLIT == 0
  if split and weights.shape[2] <= 8 and weights.shape[-1] > SPLIT:
    # Few rows, hundreds of slots: in one piece XLA:CPU (0.10) is half as fast.
    shape = weights.shape[:3] + (-1, SPLIT)
    weights = jnp.moveaxis(weights.reshape(shape), 3, 2)
    values = values.reshape(values.shape[:2] + (-1, SPLIT) + values.shape[3:])
    formula = 'BKNRS,BKNSE->BKNRE'
  out = jnp.einsum(formula, weights, values, preferred_element_type=jnp.float32)
  return out.sum(axis=2) if formula.startswith('BKN') else out


class Slots(NamedTuple):
  """Which slots of whole leaves hold tokens.

  Attributes:
    positions: int32 `[B, 1 | K, S]`, -1 where empty; with a table those of a
      pool, `[K, pages, page]`.
    filled: no slot from here on holds a token.
    table: int32 `[B, columns]` of pages; None for slots that are contiguous.
  """

  positions: jax.Array
  filled: jax.Array
  table: jax.Array | None = None


def attend_stored(
  scoring: Scoring,
  queries: Streams,
  positions: jax.Array,
  stored: Streams,
  slots: Slots,
  **part: int,
) -> tuple[jax.Array, jax.Array]:
  """Attends to whole `Stored` streams, as kernels that read them do."""
  slot_positions, filled, table = slots
  if table is not None:
    stored = jax.tree.map(lambda pool: by_row(pool, table), stored)
    slot_positions = positions_by_row(slot_positions, table)
  view = contiguous_view(stored, slot_positions, filled).only(**part)
  view = view.map(lambda s: {name: x.decode() for name, x in s.items()})
  return attend(queries, positions, view, scoring)


def received(
  queries: Streams,
  positions: jax.Array,
  lse: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  heads: int | None = None,
  block: int | None = None,
) -> jax.Array:
  """Returns the weight each slot received of all queries, `[B, heads, S]`.

  A second pass over the keys alone, with the log-sum-exp of the first. Fewer
  `heads` than K are sums over neighbouring heads.
  """
  if positions.shape[1] <= QUERY_BLOCK:
    return _received_of_rows(
      queries, positions, lse, view, scoring, heads, block
    )

  def add(total, part):
    queries, positions, lse = part
    return total + _received_of_rows(
      queries, positions, lse, view, scoring, heads, block
    ), None

  none = jnp.zeros((len(lse), heads or lse.shape[1], view.slots), jnp.float32)
  parts = (
    jax.tree.map(lambda q: _query_blocks(q, 3), queries),
    _query_blocks(positions, 1, -1),
    _query_blocks(lse, 3),
  )
  return jax.lax.scan(add, none, parts)[0]


def _received_of_rows(queries, positions, lse, view, scoring, heads, block):
  rows = _rows(queries)
  size = _block_size(view, block)
  heads = heads or lse.shape[1]
  flat = finite(lse).reshape(lse.shape[:2] + (-1, 1))

  def body(i, total):
    streams, keys, start = _fetch(view, i, size)
    scores, seen = _scores(rows, streams, positions, keys, scoring, view)
    weights = jnp.where(seen, jnp.exp(scores - flat), 0.0)
    shape = (weights.shape[0], heads, -1, weights.shape[3])
    weights = weights.reshape(shape).sum(axis=2)
    old = jax.lax.dynamic_slice_in_dim(total, start, size, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(
      total, old + weights, start, axis=2
    )

  none = jnp.zeros((lse.shape[0], heads, view.slots), jnp.float32)
  return _loop(view, size, view.filled, body, none)


def attention_weights(
  queries: Streams,
  positions: jax.Array,
  lse: jax.Array,
  view: View,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Returns weights `[B, K, G, T, S]` and positions `[B, 1 | K, S]` of slots.

  For inspection: the result has all S slots.
  """
  groups, tokens = lse.shape[2:]
  streams, keys = view.fetch(0, view.slots)
  scores, seen = _scores(
    _rows(queries), streams, positions, keys, scoring, view
  )
  flat = finite(lse).reshape(lse.shape[:2] + (-1, 1))
  weights = jnp.where(seen, jnp.exp(scores - flat), 0.0)
  shape = weights.shape[:2] + (groups, tokens, view.slots)
  return weights.reshape(shape), keys


def _rows(queries: Streams) -> Streams:
  """Folds `[B, K, G, T, H]` to `[B, K, G T, H]`: the queries of one key."""
  return {
    name: q.reshape(q.shape[:2] + (-1, q.shape[-1]))
    for name, q in queries.items()
  }


def _scores(rows, streams, positions, keys, scoring, view):
  """Returns scores `[B, K, G T, S]`, -inf where unseen, and what is seen."""
  scores = sum(_product(streams[name], q) for name, q in rows.items())
  scores = scores * scoring.scale
  if scoring.softcap is not None:
    scores = scoring.softcap * jnp.tanh(scores / scoring.softcap)
  tokens = positions.shape[1]
  query_positions = positions[:, None, :, None]
  slot_positions = keys[:, :, None, :]
  groups = scores.shape[2] // tokens
  shape = scores.shape[:2] + (groups, tokens, scores.shape[-1])
  if scoring.bias is not None:
    bias = scoring.bias(
      query_positions, slot_positions, scores.shape[1]
    )  # [B, K, G, T, S]
    scores = (scores.reshape(shape) + bias).reshape(scores.shape)
  seen = scoring.visibility.sees(query_positions, slot_positions)
  seen = seen & (query_positions >= 0)
  if view.shown_to is not None and tokens > 1:
    seen = seen & view.shown_to(query_positions, slot_positions)
  seen = jnp.broadcast_to(seen[:, :, None], shape).reshape(scores.shape)
  return jnp.where(seen, scores, -jnp.inf), seen


def _product(stream: jax.Array, queries: jax.Array) -> jax.Array:
  """Returns `[B, K, R, S]` of `[B, K, S, H]` and `[B, K, R, H]`, float32.

  The product is computed slots first, the order in which a CPU reads the stream
  at full speed, and transposed, because a softmax along the last axis is
  fastest.
  """
  stream = _wide(stream)
  scores = jnp.einsum(
    'BKSH,BKRH->BKSR',
    stream,
    queries.astype(stream.dtype),
    preferred_element_type=jnp.float32,
  )
  # XLA would fold the transpose into the product and restore the slow order.
  # The barrier prevents it. Hundreds of rows wait for arithmetic, not for the
  # stream: both orders are as fast, and the barrier would cost a transpose.
  if target() == 'cpu' and queries.shape[2] < QUERIES_FIRST:
    scores = jax.lax.optimization_barrier(scores)
  return jnp.swapaxes(scores, 2, 3)


def _wide(x: jax.Array) -> jax.Array:
  # Accelerators multiply narrow types and accumulate wide; a CPU has no
  # kernel for that and would upcast the operands in memory anyway.
  return x.astype(jnp.float32) if target() == 'cpu' else x


def _block_size(view: View, block: int | None) -> int:
  if block is None and target() == 'cpu':
    block = BLOCK
  elif block is None:
    # Codes of all slots would be decoded into an array of floats.
    block = DECODED if _holds_codes(view) else view.slots
  block = max(block // view.page, 1) * view.page
  return min(block, view.slots)


def _holds_codes(view: View) -> bool:
  stored = (view.stored or {}).values()
  return any(x is None or x.scale is not None or x.dtype for x in stored)


def _fetch(view: View, i: Any, size: int):
  """Returns block i; the last one overlaps, its repeated slots emptied."""
  if size == view.slots:
    return *view.fetch(0, size), 0
  start = jnp.minimum(i * size, view.slots - size)
  streams, keys = view.fetch(start, size)
  repeated = start + jnp.arange(size, dtype=jnp.int32) < i * size
  return streams, jnp.where(repeated[None, None, :], -1, keys), start


def _loop(view: View, size: int, filled: Any, body, carry):
  if size == view.slots:
    return body(0, carry)
  if target() == 'cpu':
    read = jnp.minimum(filled, view.slots)
  else:  # a loop of unknown length makes a GPU's host wait at every iteration
    read = view.slots
  blocks = (read + size - 1) // size
  return jax.lax.fori_loop(0, blocks, body, carry)


def _never_missing() -> str:
  return ''


def _refuses_nothing(
  queries: Streams, view: View, scoring: Scoring, block: int | None = None
) -> str:
  del queries, view, scoring, block
  return ''


KERNEL = Kernel(
  name='blockwise',
  platform='',
  missing=_never_missing,
  is_at_home=lambda: True,
  refuses=_refuses_nothing,
  attend=attend,
)
