"""Scalars of the past gathered into tensors: the nodes of the cut.

Two scalars are of one tensor when one equation makes both, they bear the same
names and the same equations read them: the key and value parts of a fused
projection are two tensors. Rows that the iterations of a loop make are one.
"""

import collections
import dataclasses
import enum
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.cut.lifetimes import Boundary
from kvjax.liveness.program import folding
from kvjax.liveness.program.scalars import distinct
from kvjax.liveness.program.trace import Trace

Array = np.ndarray


class Extent(enum.Enum):
  """How the scalars of a tensor are spread over past positions."""

  ROWS = 'a row for every position'
  WINDOW = 'rows of the last positions only'
  STATE = 'one row, made from the row before'
  ENTRIES = 'one row, made from the row before, with an entry a position'
  BAND = 'rows that grow or were made ahead: neither rows nor a state'


@dataclasses.dataclass(frozen=True)
class Node:
  """One tensor of the past at the boundary."""

  ids: Array  # numbers of its scalars
  maker: int  # number of the operation, -1 for the program's input
  names: tuple[str, ...]
  readers: frozenset[Any]  # equations that read it, with the operand's number
  extent: Extent
  width: int  # scalars a row; of ENTRIES, those that a position adds
  window: int  # positions from its first row to the boundary
  itemsize: int  # bytes of a scalar
  flops: float  # to redo it, a past token
  gap: int = 1  # positions from row to row: the size of a summary's block
  decided: bool = False  # it is kept, as was decided before

  @property
  def unbounded(self) -> bool:
    """Returns whether every position adds to it."""
    return self.extent in (Extent.ROWS, Extent.ENTRIES)

  @property
  def recurrent(self) -> bool:
    """Returns whether it is made from the like of itself."""
    return self.extent in (Extent.STATE, Extent.ENTRIES)

  @property
  def bytes_per_token(self) -> float:
    if self.extent is Extent.STATE:
      return 0
    size = self.width * self.itemsize
    # Bytes are a whole number, except where blocks do not divide them.
    return size / self.gap if size % self.gap else size // self.gap

  @property
  def state_bytes(self) -> int:
    if self.extent is not Extent.STATE:
      return 0
    return self.width * self.itemsize


@dataclasses.dataclass(frozen=True)
class _Part:
  """The scalars of one node, with what decides about its extent."""

  ids: Array
  maker: int
  crosses: bool  # something that is not known yet reads it directly
  times: Array  # the positions that have scalars
  sizes: Array  # how many scalars each of these positions has

  @property
  def gap(self) -> int:
    """Returns positions from row to row: of summaries of blocks, a block.

    Three rows or fewer do not show a regular gap; a longer sequence will.
    """
    steps = np.unique(np.diff(self.times))
    return int(steps[0]) if len(self.times) > 3 and len(steps) == 1 else 1

  @property
  def usual_size(self) -> int:
    """Returns the most frequent size of a row, the greatest of several."""
    values, counts = np.unique(self.sizes, return_counts=True)
    return int(values[counts == counts.max()].max())


def group_nodes(trace: Trace, boundary: Boundary) -> list[Node]:
  """Returns the tensors of the past at a boundary."""
  names = _KeySets(trace.table.size, trace.named_ids)
  readers = _readers(trace, boundary)
  growing = _growing(trace)
  ahead = _ahead(trace)
  parts = _group_ids(trace, boundary, names, readers)
  firsts = np.array([ids[0] for ids in parts], np.int64)
  nodes = []
  for ids, bears, reads in zip(
    parts, names.find(firsts), readers.find(firsts), strict=True
  ):
    first = ids[0]
    maker = int(trace.table.maker[first])
    times, sizes = np.unique(trace.table.available[ids], return_counts=True)
    part = _Part(ids, maker, bool(boundary.frontier[first]), times, sizes)
    if maker in ahead:
      extent, width = _measure(boundary, part, [], True)
      flops = 0.0  # A step makes them once, for itself.
    else:
      history = _history(trace, part)
      extent, width = _measure(boundary, part, history, maker in growing)
      flops = _flops(trace, part, extent, width)
    nodes.append(
      Node(
        ids=ids,
        maker=maker,
        names=bears,
        readers=frozenset(reads),
        extent=extent,
        width=width,
        window=boundary.position - int(times[0]),
        itemsize=int(trace.table.itemsize[first]),
        flops=flops,
        gap=part.gap,
      )
    )
  return nodes


def find_nodes(trace: Trace, nodes: Sequence[Node]) -> Array:
  """Returns [scalars] the number of each scalar's node, -1 for none."""
  node_of = np.full(trace.table.size, -1, np.int64)
  for i, node in enumerate(nodes):
    node_of[node.ids] = i
  return node_of


def _group_ids(
  trace: Trace, boundary: Boundary, names: '_KeySets', readers: '_KeySets'
) -> list[Array]:
  """Returns the live scalars, those of each tensor together."""
  maker = trace.table.maker
  crosses = boundary.frontier
  live = np.flatnonzero(boundary.live)
  key = [maker[live], names.code[live], readers.code[live], crosses[live]]
  groups: dict[Any, list[Array]] = collections.defaultdict(list)
  for ids in _alike(np.stack(key, 1), live):
    first = ids[0]
    kind = _kind(trace, int(maker[first])), names.code[first], crosses[first]
    groups[kind].append(ids)
  return [
    ids for members in groups.values() for ids in _join_rows(trace, members)
  ]


def _alike(key: Array, ids: Array) -> list[Array]:
  """Returns `ids` in groups of equal rows of `key`, in the order of `key`."""
  if not ids.size:
    return []
  _, index = np.unique(key, axis=0, return_inverse=True)
  index = index.reshape(-1)
  order = np.argsort(index, kind='stable')
  return np.split(ids[order], np.flatnonzero(np.diff(index[order])) + 1)


def _kind(trace: Trace, maker: int) -> tuple[Any, ...]:
  """Returns what the iterations of a loop, even in Python, have in common."""
  if maker < 0:
    return ()
  op = trace.ops[maker]
  return op.origin.source, op.name, op.outs[0].shape, str(op.dtypes)


def _growing(trace: Trace) -> set[int]:
  """Returns operations that make more at each position than before: scores.

  Those of a loop make one position each and are counted together.
  """
  sizes: dict[Any, Any] = {}
  members: dict[Any, list[int]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    count = _count_by_position(trace, op.new_ids)
    key = index if np.count_nonzero(count) > 1 else _kind(trace, index)
    sizes[key] = sizes.get(key, 0) + count
    members[key].append(index)
  # Three positions in a row that grow: a window's rows grow only at its start.
  last = {key: count[count > 0][-3:] for key, count in sizes.items()}
  return {
    index
    for key, count in last.items()
    if len(count) == 3 and np.all(np.diff(count) > 0)
    for index in members[key]
  }


def _ahead(trace: Trace) -> set[int]:
  """Returns operations that make of a position what each later one reads.

  Scores of queries that are constants are an example: all are known as soon as
  their key is, and the earlier the key the more of them are needed. A decoder
  makes the scores of a step in that step, once.
  """
  need = lifetimes.find_needed(trace)
  out = set()
  for index, op in enumerate(trace.ops):
    count = _count_by_position(trace, op.new_ids[need[op.new_ids]])
    if np.all(count[-3:] > 0) and np.all(np.diff(count[-3:]) < 0):
      out.add(index)
  return out


def _count_by_position(trace: Trace, ids: Array) -> Array:
  return np.bincount(trace.table.available[ids], minlength=trace.length)


def _join_rows(trace: Trace, parts: list[Array]) -> list[Array]:
  """Joins parts that have different positions: rows of one tensor.

  Parts of one equation are always joined. Parts of several equations are
  joined when each has one position, as a loop in Python makes them.
  """
  table = trace.table
  times = [set(table.available[ids].tolist()) for ids in parts]
  # Three parts or fewer of one position each may be tensors of their own kind:
  # a query, a key and a value of the last row.
  loop = len(parts) > 3 and all(len(t) == 1 for t in times)
  joined: list[tuple[set[int], Any, list[Array]]] = []
  for ids, positions in zip(parts, times, strict=True):
    maker = int(table.maker[ids[0]])
    place = None if loop or maker < 0 else trace.ops[maker].origin.equation
    for taken, equation, members in joined:
      if equation == place and not taken & positions:
        taken |= positions
        members.append(ids)
        break
    else:
      joined.append((positions, place, [ids]))
  return [np.sort(np.concatenate(members)) for _, _, members in joined]


def _measure(
  boundary: Boundary, part: _Part, history: list[int], grows: bool
) -> tuple[Extent, int]:
  """Returns the extent of a tensor and the scalars of a row.

  Args:
    boundary: where the program is cut.
    part: scalars of the tensor.
    history: sizes of the rows that a state was made from; none: no state.
    grows: whether its rows grow with the position, or are made ahead.
  """
  if grows and history:  # A sum for every key, of which positions add some.
    return Extent.ENTRIES, int(part.sizes[0] - history[-1])
  if grows:
    return Extent.BAND, max(1, round(len(part.ids) / boundary.position))
  if history:
    return Extent.STATE, part.usual_size
  # A summary is made at the end of its block, and programs that look one block
  # back have none for the first block: the first row may be two gaps late. The
  # last block may be unfinished at the boundary; without blocks, programs that
  # shift rows lack up to two.
  begins = part.times[0] <= 2 * part.gap
  ends = part.times[-1] >= boundary.position - max(2, part.gap)
  return Extent.ROWS if begins and ends else Extent.WINDOW, part.usual_size


def _flops(trace: Trace, part: _Part, extent: Extent, width: int) -> float:
  """Returns the FLOPs a past token of redoing a tensor.

  Pointwise operations on the few rows of a window or on one state cost nothing
  that counts.
  """
  if part.maker < 0 or _is_free(trace, part.maker):
    return 0.0
  op = trace.ops[part.maker]
  short = extent in (Extent.WINDOW, Extent.STATE)
  if short and op.name in folding.POINTWISE:
    return 0.0
  return op.flops * width / part.gap


def _history(trace: Trace, part: _Part) -> list[int]:
  """Returns sizes of the rows that a state was made from; none: no state.

  A state is made from the like of itself, row before row to the beginning. A
  partial sum of a short convolution goes back a few rows only and is no state.
  """
  if len(part.times) > 1 or not part.crosses or part.maker < 0:
    return []
  kind = _kind(trace, part.maker)
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[part.ids] = 0
  times: list[Array] = []
  for index in range(int(trace.table.maker[part.ids].max()), -1, -1):
    op = trace.ops[index]
    lifetimes.pull(op, lifetimes.gather_results(op, mark), mark)
    if _kind(trace, index) == kind:
      earlier = op.new_ids[mark[op.new_ids] >= 0]
      times.append(trace.table.available[earlier])
      if times[-1].size and times[-1].min() == 0:
        break  # It began here; a lower layer has states apart from this one.
  before = np.concatenate(times) if times else np.zeros(0, np.int32)
  now = int(part.times[0])
  rows, sizes = np.unique(before[before < now], return_counts=True)
  if not rows.size:
    return []
  step = now - rows[-1]  # A state of blocks skips positions.
  return sizes.tolist() if rows[0] <= 2 * step else []


_FREE = frozenset(('convert_element_type', 'reduce_precision', 'neg', 'copy'))


def _is_free(trace: Trace, maker: int) -> bool:
  """Returns whether an operation folds into its readers.

  Casts do, and products with one constant number.
  """
  op = trace.ops[maker]
  if op.name in _FREE:
    return True
  if op.name in folding.POINTWISE and np.issubdtype(op.dtypes[0], np.integer):
    return True  # Programs clip ids; that is no work worth counting.
  if op.name not in ('mul', 'div'):
    return False
  new = op.outs[0] >= 0
  return any(
    t.fixed and np.unique(np.asarray(t.const)[new]).size == 1 for t in op.ins
  )


def _readers(trace: Trace, boundary: Boundary) -> '_KeySets':
  """Returns for every scalar the equations that read it, in any iteration."""
  reads: dict[Any, list[Array]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    for a in range(len(op.ins)):
      for ids in (boundary.within[index][a], boundary.across[index][a]):
        if ids.size:
          reads[op.origin.equation, a].append(ids)
  ids_of = {k: distinct(np.concatenate(v)) for k, v in reads.items()}
  return _KeySets(trace.table.size, ids_of)


class _KeySets:
  """A set of keys for every scalar, and a number for every set.

  The number is a sum of digests. Python's own hash of a string differs from
  process to process, and the order of nodes would differ with it.
  """

  def __init__(self, size: int, ids_of: dict[Any, Array]) -> None:
    self.ids_of = {key: ids for key, ids in ids_of.items() if ids.size}
    self.code = np.zeros(size, np.int64)
    for key, ids in ids_of.items():
      digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
      self.code[ids] += int.from_bytes(digest, 'big') >> 8

  def find(self, ids: Array) -> list[tuple[Any, ...]]:
    """Returns the keys of each of `ids`, in their order."""
    out: list[list[Any]] = [[] for _ in ids]
    for key, members in self.ids_of.items():
      nearest = np.minimum(np.searchsorted(members, ids), len(members) - 1)
      for i in np.flatnonzero(members[nearest] == ids).tolist():
        out[i].append(key)
    return [tuple(keys) for keys in out]
