"""How a kept tensor is stored: which scalars of which equation, in what slots.

A kept tensor has slots `[slots, width]`, one for the row of every position or
a ring for the rows of the last positions.
"""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.cut.nodes import Node
from kvjax.liveness.decoder.one_row import RowValue, insert, slice_of
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Place, Trace
from kvjax.liveness.verdict import Analysis


@dataclasses.dataclass(frozen=True)
class KeptTensor:
  """One kept tensor of one equation."""

  name: str
  result: int  # which result of the equation
  axis: int  # of the result, that counts positions
  block: int  # length along the axis that one position has
  features: np.ndarray | None  # of a row's scalars, those kept; None: all
  window: int | None  # rows that are read; None: every row

  def slots(self, capacity: int) -> int:
    """Returns how many rows are stored."""
    return capacity if self.window is None else min(self.window, capacity)

  def row(self, value: RowValue, t: jax.Array) -> jax.Array:
    """Returns [width] what position t leaves behind."""
    new = slice_of(value, self.axis, self.block, t)
    if new is None:
      raise AnalysisError(f'{self.name} has no row for every position.')
    flat = jnp.moveaxis(new, self.axis, 0).reshape(-1)
    return flat if self.features is None else flat[self.features]

  def past(
    self, slots: jax.Array, value: RowValue, t: jax.Array, capacity: int
  ) -> jax.Array:
    """Returns [capacity, row] the rows before t from their slots, else zero."""
    rows = _rows_by_position(slots, t, capacity, self.window)
    if self.features is None:
      return rows
    blank = jnp.zeros((capacity, math.prod(value.shape) // capacity))
    return blank.astype(rows.dtype).at[:, self.features].set(rows)

  def whole(
    self, rows: jax.Array, value: RowValue, t: jax.Array, capacity: int
  ) -> RowValue:
    """Returns the tensor of its past rows and, at t, its new row."""
    rest = [n for i, n in enumerate(value.shape) if i != self.axis]
    full = rows.reshape(capacity * self.block, *rest)
    full = jnp.moveaxis(full, 0, self.axis)
    new = slice_of(value, self.axis, self.block, t)
    out = RowValue(value.shape, None, new, self.axis)
    return out._replace(full=insert(full, out, t))


def _rows_by_position(
  slots: jax.Array, t: jax.Array, capacity: int, window: int | None
) -> jax.Array:
  """Returns [capacity, width] the rows of a ring at their positions."""
  if window is None:
    return slots
  count = slots.shape[0]
  blank = jnp.zeros((capacity, slots.shape[1]), slots.dtype)
  # Slot s has the last position before t that is s modulo the slots.
  positions = t - 1 - (t - 1 - jnp.arange(count)) % count
  written = jnp.where(positions < 0, capacity, positions)
  return blank.at[written].set(slots, mode='drop')


def write(
  slots: jax.Array, row: jax.Array, t: jax.Array, room: jax.Array
) -> jax.Array:
  """Returns the slots with the row of position t, if there is room."""
  count = slots.shape[0]
  slot = jnp.where(room, t % count, count)  # Past the end: dropped.
  return slots.at[slot].set(row, mode='drop')


def plan_kept(analysis: Analysis) -> dict[Place, list[KeptTensor]]:
  """Returns what to store, by the equation that makes it; () is the input."""
  out: dict[Place, list[KeptTensor]] = {}
  count: collections.Counter[str] = collections.Counter()
  for i in analysis.cut.kept:
    node = analysis.graph.nodes[i]
    if node.recurrent:
      continue  # The state of a loop is stored where the loop runs.
    label = analysis.names[i]
    count[label] += 1
    name = label if count[label] == 1 else f'{label}#{count[label]}'
    place, tensor = _plan_node(analysis, node, name)
    out.setdefault(place, []).append(tensor)
  return out


def kept_places(analysis: Analysis) -> frozenset[Place]:
  """Returns places of equations that make what is kept."""
  nodes = [analysis.graph.nodes[i] for i in analysis.cut.kept]
  return frozenset(_place(analysis.trace, node) for node in nodes)


def kept_states(analysis: Analysis) -> dict[str, Place]:
  """Returns kept states, and the places of the equations that make them."""
  return {
    analysis.names[i]: _place(analysis.trace, node)
    for i in analysis.cut.kept
    if (node := analysis.graph.nodes[i]).recurrent
  }


def _place(trace: Trace, node: Node) -> Place:
  """Returns the place of the equation that makes a node; () is the input."""
  return trace.ops[node.maker].origin.place if node.maker >= 0 else ()


def _plan_node(
  analysis: Analysis, node: Node, name: str
) -> tuple[Place, KeptTensor]:
  trace = analysis.trace
  place = _place(trace, node)
  results = trace.results[place] if place else (trace.x,)
  for index, tensor in enumerate(results):
    kept = np.isin(tensor.ids, node.ids)
    if kept.any():
      axis, block, features = _layout(trace, tensor, kept, name)
      window = None if node.unbounded else _window(analysis, node, name)
      return place, KeptTensor(name, index, axis, block, features, window)
  raise AnalysisError(f'{name} is made inside a loop over positions.')


def _window(analysis: Analysis, node: Node, name: str) -> int:
  """Returns the rows that some later position reads, at any boundary."""
  live = max(analysis.live_for.get(n, 0) for n in (name, *node.names))
  return max(node.window, int(live)) if np.isfinite(live) else node.window


def _layout(
  trace: Trace, tensor: Tensor, kept: np.ndarray, name: str
) -> tuple[int, int, np.ndarray | None]:
  """Returns the axis of positions, its block a position, the features kept.

  Args:
    trace: the program.
    tensor: the result that the kept scalars are part of.
    kept: bool, of the tensor's shape.
    name: for the error.
  """
  where = np.argwhere(kept)
  times = trace.table.available[tensor.ids[kept]]
  for axis, size in enumerate(tensor.shape):
    block = size // trace.length
    if size % trace.length or np.any(where[:, axis] // block != times):
      continue
    rows = np.moveaxis(kept, axis, 0).reshape(trace.length, -1)
    rows = rows[np.unique(times)]
    if np.all(rows == rows[0]):
      features = np.flatnonzero(rows[0])
      every = len(features) == rows.shape[1]
      return axis, block, None if every else features
  raise AnalysisError(
    f'{name} {tensor.shape} has no axis along which rows are positions.'
  )


def find_row_axes(analysis: Analysis) -> dict[Place, frozenset[int]]:
  """Returns for every product the axes whose row t has all that is new at t.

  Row t of the other axes has old scalars too, as column t of scores has.
  """
  trace = analysis.trace
  need = lifetimes.find_needed(trace)
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
