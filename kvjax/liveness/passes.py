"""Passes over a trace: who is needed, for how long, by whom.

A scalar is available at the last position it depends on; it is live until the
last position at which a needed scalar that reads it becomes available.
Everything is computed as early as it can be and nothing is computed twice, so
that is the schedule of a cached decoder that recomputes nothing.
"""

import dataclasses

import numpy as np

from kvjax.liveness import elements
from kvjax.liveness import trace as tracing

Array = np.ndarray
NEVER = -1


def outputs_from(trace: tracing.Trace, boundary: int = 0) -> Array:
  """0 at output scalars that are not available before `boundary`, else -1."""
  seed = np.full(trace.table.size, NEVER, np.int32)
  for tensor in trace.outputs:
    ids = tensor.ids[~tensor.is_const]
    seed[ids] = np.where(trace.table.available[ids] >= boundary, 0, NEVER)
  return seed


def needed(
  trace: tracing.Trace, boundary: int = 0, kept: Array | None = None
) -> Array:
  """[scalars] whether any output from `boundary` on depends on it.

  What only `kept` scalars are made of is not needed.
  """
  need = outputs_from(trace, boundary)
  for op in reversed(trace.ops):
    wanted = need if kept is None else np.where(kept, NEVER, need)
    pull(op, outs_of(op, wanted), need)
  return need >= 0


def last_read(
  trace: tracing.Trace, need: Array, redone: Array | None = None
) -> Array:
  """[scalars] the position of the last needed scalar that reads each one.

  What is `redone` at every step is no reader of its own: who reads it reads
  through it.
  """
  known = trace.table.available
  last = np.where(outputs_from(trace) >= 0, known, NEVER).astype(np.int32)
  for op in reversed(trace.ops):
    attribute = np.where(need, known, NEVER)
    if redone is not None:
      attribute = np.where(redone & need, last, attribute)
    pull(op, outs_of(op, attribute), last)
  return last


def outs_of(op: tracing.Op, attribute: Array) -> Array:
  """An attribute of an operation's results, the greatest of each place."""
  return np.max([elements.lookup(attribute, ids) for ids in op.outs], axis=0)


def pull(op: tracing.Op, attribute: Array, into: Array) -> None:
  """Raises `into` at what the results of `op` with an attribute read."""
  if attribute.max(initial=NEVER) == NEVER:
    return
  for tensor, relation in zip(op.ins, op.reads, strict=True):
    if not tensor.fixed:
      here = ~tensor.is_const
      pulled = relation.pull(attribute)
      np.maximum.at(into, tensor.ids[here], pulled[here])


@dataclasses.dataclass(frozen=True)
class Boundary:
  """A trace cut in two at a position: what is known there and still needed."""

  position: int
  live: Array  # [scalars] known before it, needed by an output from it on
  frontier: Array  # [scalars] live, and read by something not known yet
  # For every operation: which operand scalars its live results read.
  within: dict[int, tuple[Array, ...]]
  across: dict[int, tuple[Array, ...]]  # and its unknown needed results


def split(
  trace: tracing.Trace, position: int, kept: Array | None = None
) -> Boundary:
  """Splits the program at a token boundary, as partial evaluation does."""
  need = needed(trace, position, kept)
  known = trace.table.available < position
  live = need & known
  made = live if kept is None else live & ~kept
  frontier = np.zeros_like(live)
  within, across = {}, {}
  for index, op in enumerate(trace.ops):
    within[index] = _reads(op, made, live)
    across[index] = _reads(op, need & ~known, live)
    for ids in across[index]:
      frontier[ids] = True
  return Boundary(position, live, frontier, within, across)


def _reads(op: tracing.Op, results: Array, among: Array) -> tuple[Array, ...]:
  """For every operand, the scalars of `among` that some of `results` read."""
  flags = outs_of(op, np.where(results, 0, NEVER))
  empty = np.zeros(0, np.int64)
  if flags.max(initial=NEVER) == NEVER:
    return (empty,) * len(op.ins)
  out = []
  for tensor, relation in zip(op.ins, op.reads, strict=True):
    if tensor.fixed:
      out.append(empty)
      continue
    ids = tensor.ids[(relation.pull(flags) >= 0) & ~tensor.is_const]
    ids = np.unique(ids)
    out.append(ids[among[ids]])
  return tuple(out)
