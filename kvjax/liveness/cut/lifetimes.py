"""Passes over a trace: who is needed, for how long, by whom.

A scalar is available at the last position it depends on; it is live until the
last position at which a needed scalar that reads it becomes available.
Everything is computed as early as it can be and nothing is computed twice, so
that is the schedule of a cached decoder that recomputes nothing.
"""

import dataclasses

import numpy as np

from kvjax.liveness.program import record, scalars

Array = np.ndarray
NEVER = -1
NONE = np.zeros(0, bool)  # No scalar.


def outputs_from(trace: record.Trace, boundary: int = 0) -> Array:
  """0 at output scalars that are not available before `boundary`, else -1."""
  seed = np.full(trace.table.size, NEVER, np.int32)
  for tensor in trace.outputs:
    ids = tensor.ids[~tensor.is_const]
    seed[ids] = np.where(trace.table.available[ids] >= boundary, 0, NEVER)
  return seed


def needed(
  trace: record.Trace, boundary: int = 0, kept: Array | None = None
) -> Array:
  """[scalars] whether any output from `boundary` on depends on it.

  What only `kept` scalars are made of is not needed.
  """
  need = outputs_from(trace, boundary)
  for op in reversed(trace.ops):
    wanted = outs_of(op, need, NONE if kept is None else kept)
    pull(op, wanted, need)
  return need >= 0


def last_read(
  trace: record.Trace, need: Array, redone: Array | None = None
) -> Array:
  """[scalars] the position of the last needed scalar that reads each one.

  What is `redone` at every step is no reader of its own: who reads it reads
  through it.
  """
  known = trace.table.available
  last = np.where(outputs_from(trace) >= 0, known, NEVER).astype(np.int32)
  through = NONE if redone is None else redone & need
  own = np.where(need, known, NEVER)
  for op in reversed(trace.ops):
    attribute = outs_of(op, own, through)
    if through.size:
      attribute = np.maximum(attribute, outs_of(op, last, ~through))
    pull(op, attribute, last)
  return last


def outs_of(op: record.Op, attribute: Array, but: Array = NONE) -> Array:
  """An attribute of an operation's results, the greatest of each place.

  Scalars of `but` [scalars] have none. Looked up where the operation has
  scalars, for a pass over all of them an operation would cost their product.
  """
  return np.max([_of(attribute, but, ids) for ids in op.outs], axis=0)


def _of(attribute: Array, but: Array, ids: Array) -> Array:
  found = scalars.lookup(attribute, ids)
  return np.where(but[ids], NEVER, found) if but.size else found


def pull(op: record.Op, attribute: Array, into: Array) -> None:
  """Raises `into` at what the results of `op` with an attribute read."""
  if attribute.max(initial=NEVER) == NEVER:
    return
  for tensor, relation in zip(op.ins, op.reads, strict=True):
    if not tensor.fixed:
      here = ~tensor.is_const
      pulled = relation.pull(attribute)
      np.maximum.at(into, tensor.ids[here], pulled[here])


Reads = dict[int, tuple[Array, ...]]  # a tuple an operation, entry an operand


@dataclasses.dataclass(frozen=True)
class Boundary:
  """A trace cut in two at a position: what is known there and still needed."""

  position: int
  live: Array  # [scalars] known before it, needed by an output from it on
  frontier: Array  # [scalars] live, and read by something not known yet
  # For every operation: which operand scalars its live results read.
  within: Reads
  across: Reads  # and its unknown needed results


def split(
  trace: record.Trace, position: int, kept: Array | None = None
) -> Boundary:
  """Splits the program at a token boundary, as partial evaluation does."""
  need = needed(trace, position, kept)
  live = need & (trace.table.available < position)
  across = _across(trace, position, need)
  made = live if kept is None else live & ~kept
  within = _reads(trace, made, live)
  return Boundary(position, live, _frontier(trace, across), within, across)


def crossing(trace: record.Trace, position: int) -> int:
  """How many scalars known before `position` are read from it on."""
  across = _across(trace, position, needed(trace, position))
  return int(_frontier(trace, across).sum())


def _across(trace: record.Trace, position: int, need: Array) -> Reads:
  known = trace.table.available < position
  return _reads(trace, need & ~known, need & known)


def _frontier(trace: record.Trace, across: Reads) -> Array:
  frontier = np.zeros(trace.table.size, bool)
  for reads in across.values():
    for ids in reads:
      frontier[ids] = True
  return frontier


def _reads(trace: record.Trace, results: Array, among: Array) -> Reads:
  """By operation and operand, the scalars of `among` some of `results` read."""
  wanted = np.where(results, 0, NEVER)
  return {i: _read(op, wanted, among) for i, op in enumerate(trace.ops)}


def _read(op: record.Op, wanted: Array, among: Array) -> tuple[Array, ...]:
  flags = outs_of(op, wanted)
  empty = np.zeros(0, np.int64)
  if flags.max(initial=NEVER) == NEVER:
    return (empty,) * len(op.ins)
  out = []
  for tensor, relation in zip(op.ins, op.reads, strict=True):
    if tensor.fixed:
      out.append(empty)
      continue
    ids = tensor.ids[(relation.pull(flags) >= 0) & ~tensor.is_const]
    ids = scalars.distinct(ids)
    out.append(ids[among[ids]])
  return tuple(out)
