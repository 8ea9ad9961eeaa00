"""How a kept tensor is stored: which scalars of which equation, in what slots.

A stream holds a row a position, as `[slots, width]`: every position, or a
ring of the last few.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.liveness import analysis
from kvjax.liveness.cut import lifetimes
from kvjax.liveness.decoder.one_row import Value, insert, slice_of
from kvjax.liveness.errors import AnalysisError

Place = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Stream:
  """One kept tensor of one equation."""

  name: str
  result: int  # which result of the equation
  axis: int  # of the result, that counts positions
  block: int  # its length a position
  features: np.ndarray | None  # of a row's scalars, those kept; None: all
  window: int | None  # rows read; None: every one

  def slots(self, capacity: int) -> int:
    return capacity if self.window is None else min(self.window, capacity)

  def row(self, value: Value, t: jax.Array) -> jax.Array:
    """[width] what position t leaves behind."""
    new = slice_of(value, self.axis, self.block, t)
    if new is None:
      raise AnalysisError(f'{self.name} has no row of its own.')
    flat = jnp.moveaxis(new, self.axis, 0).reshape(-1)
    return flat if self.features is None else flat[self.features]

  def write(
    self, slots: jax.Array, value: Value, t: jax.Array, room: jax.Array
  ) -> jax.Array:
    """Writes the row of position t; nowhere when there is no room."""
    count = slots.shape[0]
    if not count:
      return slots
    at = jnp.where(room, t % count, count)
    return slots.at[at].set(self.row(value, t), mode='drop')

  def past(
    self, slots: jax.Array, value: Value, t: jax.Array, capacity: int
  ) -> jax.Array:
    """[capacity, row] the rows before t from their slots, else zero."""
    rows = _positions(slots, t, capacity, self.window)
    if self.features is None:
      return rows
    blank = jnp.zeros((capacity, math.prod(value.shape) // capacity))
    return blank.astype(rows.dtype).at[:, self.features].set(rows)

  def whole(
    self, rows: jax.Array, value: Value, t: jax.Array, capacity: int
  ) -> Value:
    """The tensor from its past rows and, at t, its own."""
    rest = [n for i, n in enumerate(value.shape) if i != self.axis]
    full = rows.reshape(capacity * self.block, *rest)
    full = jnp.moveaxis(full, 0, self.axis)
    new = slice_of(value, self.axis, self.block, t)
    out = Value(value.shape, None, new, self.axis)
    return out._replace(full=insert(full, out, t))


def _positions(
  slots: jax.Array, t: jax.Array, capacity: int, window: int | None
) -> jax.Array:
  """[capacity, width] rows of a ring at their positions."""
  if window is None:
    return slots
  count = slots.shape[0]
  blank = jnp.zeros((capacity, slots.shape[1]), slots.dtype)
  if not count:
    return blank
  back = jnp.arange(count)
  at = t - 1 - (t - 1 - back) % count
  return blank.at[jnp.where(at < 0, capacity, at)].set(slots, mode='drop')


def plan(verdict: analysis.Verdict) -> dict[Place, list[Stream]]:
  """The streams to store, by the equation that makes them; () is the input."""
  out: dict[Place, list[Stream]] = {}
  names: dict[str, int] = {}
  for i in verdict.cut.kept:
    node = verdict.graph.nodes[i]
    if node.recurrent:
      continue  # A loop's own state, stored where the loop is.
    label = verdict.names[i]
    count = names[label] = names.get(label, 0) + 1
    name = label if count == 1 else f'{label}#{count}'
    place, stream = _stream(verdict, node, name)
    out.setdefault(place, []).append(stream)
  return out


def sums(verdict: analysis.Verdict) -> frozenset[Place]:
  """Places of equations that make what is kept, cumulative sums among them."""
  nodes = [verdict.graph.nodes[i] for i in verdict.cut.kept]
  return frozenset(
    verdict.trace.ops[n.maker].origin.place for n in nodes if n.maker >= 0
  )


def states(verdict: analysis.Verdict) -> dict[str, Place]:
  """Kept states, and the places of the equations that make them."""
  return {
    verdict.names[i]: verdict.trace.ops[node.maker].origin.place
    for i in verdict.cut.kept
    if (node := verdict.graph.nodes[i]).recurrent
  }


def _stream(
  verdict: analysis.Verdict, node: Any, name: str
) -> tuple[Place, Stream]:
  trace = verdict.trace
  place: Place = ()
  results = (trace.x,)
  if node.maker >= 0:
    place = trace.ops[node.maker].origin.place
    results = trace.results[place]
  for index, tensor in enumerate(results):
    held = np.isin(tensor.ids, node.ids)
    if held.any():
      axis, block, features = _layout(trace, tensor, held, name)
      window = None if node.unbounded else _window(verdict, node, name)
      return place, Stream(name, index, axis, block, features, window)
  raise AnalysisError(f'{name} is made inside a loop over positions.')


def _window(verdict: analysis.Verdict, node: Any, name: str) -> int:
  """Rows that some later position reads, whichever the boundary."""
  live = max(verdict.live_for.get(n, 0) for n in (name, *node.names))
  return max(node.lasts, int(live)) if np.isfinite(live) else node.lasts


def _layout(
  trace: Any, tensor: Any, held: np.ndarray, name: str
) -> tuple[int, int, np.ndarray | None]:
  """The axis of positions, its length a position, and the features kept."""
  where = np.argwhere(held)
  times = trace.table.available[tensor.ids[held]]
  for axis, size in enumerate(tensor.shape):
    block = size // trace.length
    if size % trace.length or np.any(where[:, axis] // block != times):
      continue
    rows = np.moveaxis(held, axis, 0).reshape(trace.length, -1)
    rows = rows[np.unique(times)]
    if np.all(rows == rows[0]):
      kept = np.flatnonzero(rows[0])
      return axis, block, None if len(kept) == rows.shape[1] else kept
  raise AnalysisError(
    f'{name} {tensor.shape} has no axis along which rows are positions.'
  )


def admissible(verdict: analysis.Verdict) -> dict[Place, frozenset[int]]:
  """For every product, axes whose row t holds all that is new at t."""
  trace = verdict.trace
  need = lifetimes.needed(trace)
  out = {}
  for op in trace.ops:
    if op.name != 'dot_general':
      continue
    tensor = trace.results.get(op.origin.place, (None,))[0]
    if tensor is None or not tensor.shape:
      continue
    live = ~tensor.is_const
    live[live] = need[tensor.ids[live]]
    where = np.argwhere(live)
    times = trace.table.available[tensor.ids[live]]
    out[op.origin.place] = frozenset(
      axis
      for axis, size in enumerate(tensor.shape)
      if size % trace.length == 0
      and np.all(where[:, axis] // max(1, size // trace.length) == times)
    )
  return out
