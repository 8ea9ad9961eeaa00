"""Passes over a trace: which scalars are needed, for how long, by which.

A scalar is available at the last position it depends on. It is live until the
last position at which a needed scalar that reads it becomes available. This is
the schedule of a cached decoder that recomputes nothing: everything is
computed as early as possible, and once.
"""

import dataclasses

import numpy as np

from kvjax.liveness.program import scalars
from kvjax.liveness.program.trace import Op, Trace

Array = np.ndarray
NEVER = -1
NONE = np.zeros(0, bool)  # An empty mask excludes no scalar.


def outputs_from(trace: Trace, boundary: int = 0) -> Array:
  """Returns [scalars] 0 at outputs available from `boundary` on, else -1."""
  seed = np.full(trace.table.size, NEVER, np.int32)
  for tensor in trace.outputs:
    ids = tensor.ids[~tensor.is_const]
    seed[ids] = np.where(trace.table.available[ids] >= boundary, 0, NEVER)
  return seed


def find_needed(trace: Trace, boundary: int = 0, kept: Array = NONE) -> Array:
  """Returns [scalars] whether any output from `boundary` on depends on it.

  Scalars that only `kept` scalars are made of are not needed.
  """
  need = outputs_from(trace, boundary)
  for op in reversed(trace.ops):
    pull(op, gather_results(op, need, kept), need)
  return need >= 0


def find_last_reads(trace: Trace, need: Array, redone: Array) -> Array:
  """Returns [scalars] the position of the last needed reader of each scalar.

  A scalar that is `redone` at every step does not count as a reader at its
  own position: its readers read through it, at theirs.
  """
  known = trace.table.available
  last = np.where(outputs_from(trace) >= 0, known, NEVER).astype(np.int32)
  through = redone & need
  time = np.where(need, known, NEVER)
  for op in reversed(trace.ops):
    direct = gather_results(op, time, through)
    pull(op, np.maximum(direct, gather_results(op, last, ~through)), last)
  return last


def gather_results(op: Op, attribute: Array, excluded: Array = NONE) -> Array:
  """Returns an attribute of an operation's results, the greatest of several.

  Excluded scalars have none. Only the operation's scalars are looked up:
  masking all scalars for every operation would cost their product.
  """
  results = [scalars.lookup(attribute, ids) for ids in op.outs]
  if excluded.size:
    hidden = [excluded[ids] for ids in op.outs]
    results = np.where(hidden, NEVER, results)
  return np.max(results, axis=0)


def pull(op: Op, attribute: Array, into: Array) -> None:
  """Raises `into` at the operands that results with an attribute read."""
  for ids, pulled in _pulled(op, attribute):
    np.maximum.at(into, ids, pulled)


def _pulled(op: Op, attribute: Array) -> list[tuple[Array, Array]]:
  """Returns for each operand its scalars, and the attribute of each's readers.

  Operands that are constants have no scalars, and none is listed where no
  result has the attribute.
  """
  read = attribute.max(initial=NEVER) > NEVER
  empty = np.zeros(0, np.int64)
  out = []
  for tensor, relation in zip(op.ins, op.reads, strict=True):
    if tensor.fixed or not read:
      out.append((empty, empty))
    else:
      by_data = ~tensor.is_const
      out.append((tensor.ids[by_data], relation.pull(attribute)[by_data]))
  return out


Reads = dict[int, tuple[Array, ...]]  # by operation, an entry for each operand


@dataclasses.dataclass(frozen=True)
class Boundary:
  """A trace cut in two at a position."""

  position: int
  live: Array  # [scalars] known before it, needed by an output from it on
  frontier: Array  # [scalars] live, and read by something not known yet
  within: Reads  # live scalars read by live results of each operation
  across: Reads  # and by needed results that are not known yet


def split(trace: Trace, position: int, kept: Array = NONE) -> Boundary:
  """Splits the program at a token boundary, as partial evaluation does.

  What `kept` scalars are made of is not looked at.
  """
  need = find_needed(trace, position, kept)
  live = need & (trace.table.available < position)
  across = _across(trace, position, need)
  redone = live & ~kept if kept.size else live
  within = _reads(trace, redone, live)
  return Boundary(position, live, _frontier(trace, across), within, across)


def count_crossing(trace: Trace, position: int) -> int:
  """Returns how many scalars known before `position` are read from it on."""
  across = _across(trace, position, find_needed(trace, position))
  return int(_frontier(trace, across).sum())


def _across(trace: Trace, position: int, need: Array) -> Reads:
  known = trace.table.available < position
  return _reads(trace, need & ~known, need & known)


def _frontier(trace: Trace, across: Reads) -> Array:
  frontier = np.zeros(trace.table.size, bool)
  for reads in across.values():
    for ids in reads:
      frontier[ids] = True
  return frontier


def _reads(trace: Trace, results: Array, among: Array) -> Reads:
  """Returns the scalars of `among` that `results` read, by operation."""
  wanted = np.where(results, 0, NEVER)
  out = {}
  for index, op in enumerate(trace.ops):
    reads = [
      scalars.distinct(ids[pulled >= 0])
      for ids, pulled in _pulled(op, gather_results(op, wanted))
    ]
    out[index] = tuple(ids[among[ids]] for ids in reads)
  return out
