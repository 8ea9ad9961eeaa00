"""Scalars of the past gathered into tensors: the nodes of the cut.

Two scalars are of one tensor when one equation made them, they carry the same
names and the same equations read them: the key and value parts of a fused
projection are two. Rows made by the iterations of a loop are one.
"""

import collections
import dataclasses
import hashlib
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.program import folding, record
from kvjax.liveness.program import scalars as elements

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Node:
  """One tensor of the past, as it stands at the boundary."""

  ids: Array
  maker: int  # number of the operation, -1 for the program's input
  names: tuple[str, ...]
  readers: frozenset[Any]  # the equations and operands that read it
  frontier: bool  # the future reads it without anything between
  rows: int  # positions it holds at the boundary
  width: int  # scalars a position
  unbounded: bool  # it holds every position
  carry: bool  # a state: one row, made from the row before
  recurrent: bool  # a state, of fixed size or one entry a position
  lasts: int  # how many positions before the boundary its first row lies
  band: bool  # rows that grow, or made ahead: no row or state holds it
  itemsize: int
  flops: float  # to redo it, a past token
  held: bool = False  # decided: it is kept
  gap: int = 1  # a row every so many positions: of blocks

  @property
  def bytes_per_token(self) -> float:
    size = 0 if self.carry else self.width * self.itemsize
    return size / self.gap if size % self.gap else size // self.gap

  @property
  def state_bytes(self) -> int:
    return self.width * self.itemsize if self.carry else 0


def group(trace: record.Trace, cut: lifetimes.Boundary) -> list[Node]:
  """The tensors of the past at a boundary."""
  names, labels = _names(trace)
  readers = _Readers(trace, cut)
  maker = trace.table.maker
  live = np.flatnonzero(cut.live)
  key = np.stack(
    [maker[live], names[live], readers.code[live], cut.frontier[live]], 1
  )
  pairwise, ahead = _pairwise(trace), _ahead(trace)
  groups: dict[Any, list[Array]] = collections.defaultdict(list)
  for ids in _alike(key, live):
    one = int(ids[0])
    kind = _kind(trace, int(maker[one])), names[one], cut.frontier[one]
    groups[kind].append(ids)
  parts = [
    ids for members in groups.values() for ids in _join_rows(trace, members)
  ]
  firsts = np.array([ids[0] for ids in parts], np.int64)
  return [
    _node(
      trace,
      cut,
      ids,
      labels[int(names[ids[0]])],
      keys,
      int(maker[ids[0]]) in pairwise,
      int(maker[ids[0]]) in ahead,
    )
    for ids, keys in zip(parts, readers.of(firsts), strict=True)
  ]


def _alike(key: Array, ids: Array) -> list[Array]:
  """`ids` apart by their row of `key`, in its order."""
  if not ids.size:
    return []
  _, index = np.unique(key, axis=0, return_inverse=True)
  index = index.reshape(-1)
  order = np.argsort(index, kind='stable')
  return np.split(ids[order], np.flatnonzero(np.diff(index[order])) + 1)


def _kind(trace: record.Trace, maker: int) -> tuple[Any, ...]:
  """What the iterations of one loop, even a Python one, have in common."""
  if maker < 0:
    return ()
  op = trace.ops[maker]
  return op.origin.source, op.name, op.outs[0].shape, str(op.dtypes)


def _pairwise(trace: record.Trace) -> set[int]:
  """Operations that make more at each position than at the one before: scores.

  Those of a loop make one position each and are counted together.
  """
  sizes: dict[Any, Any] = {}
  members: dict[Any, list[int]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    times = trace.table.available[np.concatenate([o[o >= 0] for o in op.outs])]
    count = np.bincount(times, minlength=trace.length)
    key = index if np.count_nonzero(count) > 1 else _kind(trace, index)
    sizes[key] = sizes.get(key, 0) + count
    members[key].append(index)
  last = {key: count[count > 0][-3:] for key, count in sizes.items()}
  return {
    index
    for key, count in last.items()
    if len(count) == 3 and np.all(np.diff(count) > 0)
    for index in members[key]
  }


def _ahead(trace: record.Trace) -> set[int]:
  """Operations that make of a position what each later one reads for itself.

  Scores of queries that are constants: all are known as soon as their key is,
  and the earlier the key the more of them. A step makes its own, once.
  """
  need = lifetimes.needed(trace)
  out = set()
  for index, op in enumerate(trace.ops):
    ids = np.concatenate([o[o >= 0] for o in op.outs])
    times = trace.table.available[ids[need[ids]]]
    count = np.bincount(times, minlength=trace.length)
    if np.all(count[-3:] > 0) and np.all(np.diff(count[-3:]) < 0):
      out.add(index)
  return out


def _join_rows(trace: record.Trace, parts: list[Array]) -> list[Array]:
  """Joins parts that hold different positions: rows of one tensor.

  Those of one equation always; those of several when there is one a position,
  as a loop in Python leaves them.
  """
  known, maker = trace.table.available, trace.table.maker
  times = [set(known[ids].tolist()) for ids in parts]
  loop = len(parts) > 3 and all(len(t) == 1 for t in times)
  joined: list[tuple[set[int], Any, list[Array]]] = []
  for ids, now in zip(parts, times, strict=True):
    first = int(maker[ids[0]])
    place = None if loop or first < 0 else trace.ops[first].origin.equation
    for held, where, members in joined:
      if where == place and not held & now:
        held |= now
        members.append(ids)
        break
    else:
      joined.append((now, place, [ids]))
  return [np.sort(np.concatenate(members)) for _, _, members in joined]


def _node(
  trace: record.Trace,
  cut: lifetimes.Boundary,
  ids: Array,
  names: tuple[str, ...],
  readers: frozenset[Any],
  pairwise: bool,
  ahead: bool,
) -> Node:
  times, sizes = np.unique(trace.table.available[ids], return_counts=True)
  maker = int(trace.table.maker[ids[0]])
  frontier = bool(cut.frontier[ids[0]])
  width = _usual(sizes)
  gap = _gap(times)
  reach = max(2, gap)
  unbounded = bool(times[0] < 2 * gap + 1 and times[-1] >= cut.position - reach)
  alone = len(times) == 1 and frontier and maker >= 0
  before = _history(trace, ids) if alone else []
  carry = bool(before)
  band = pairwise and not carry
  if band:
    width = max(1, round(len(ids) / cut.position))
  elif pairwise:  # A sum a key, not one in all.
    carry, unbounded, width = False, True, int(sizes[0] - before[-1])
  flops = trace.ops[maker].flops if maker >= 0 else 0.0
  band |= ahead
  free = ahead or _free(trace, maker)
  if not (unbounded or band):
    free |= maker < 0 or trace.ops[maker].name in folding.POINTWISE
  return Node(
    ids=ids,
    maker=maker,
    names=names,
    readers=readers,
    frontier=frontier,
    rows=len(times),
    width=width,
    unbounded=unbounded,
    carry=carry,
    recurrent=bool(before),
    lasts=cut.position - int(times[0]),
    band=band,
    itemsize=int(trace.table.itemsize[ids[0]]),
    flops=0.0 if free else flops * width / gap,
    gap=gap,
  )


def _gap(times: Array) -> int:
  """Positions from row to row: of the summaries of blocks, a block.

  Too few rows say nothing yet; a longer sequence will.
  """
  steps = np.unique(np.diff(times))
  return int(steps[0]) if len(times) > 3 and len(steps) == 1 else 1


def _usual(sizes: Array) -> int:
  """The most frequent size of a row; of several the greatest."""
  values, counts = np.unique(sizes, return_counts=True)
  return int(values[counts == counts.max()].max())


def _history(trace: record.Trace, ids: Array) -> list[int]:
  """Sizes of the rows a state was made from, back to the first; or none.

  A state is made from the like of itself, row before row to the beginning. A
  partial sum of a short convolution goes back a few rows and is none.
  """
  kind = _kind(trace, int(trace.table.maker[ids[0]]))
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[ids] = 0
  times: list[Array] = []
  now = int(trace.table.available[ids[0]])
  for index in range(int(trace.table.maker[ids].max()), -1, -1):
    op = trace.ops[index]
    lifetimes.pull(op, lifetimes.outs_of(op, mark), mark)
    if _kind(trace, index) == kind:
      made = np.concatenate([o[o >= 0] for o in op.outs])
      times.append(trace.table.available[made[mark[made] >= 0]])
      if times[-1].size and times[-1].min() == 0:
        break  # Here it began; a lower layer has states of its own.
  before = np.concatenate(times) if times else np.zeros(0, np.int32)
  found, sizes = np.unique(before[before < now], return_counts=True)
  step = now - found[-1] if found.size else 0  # A state of blocks skips.
  return sizes.tolist() if found.size and found[0] <= 2 * step else []


_FREE = frozenset(('convert_element_type', 'reduce_precision', 'neg', 'copy'))


def _free(trace: record.Trace, maker: int) -> bool:
  """Casts and products with one constant number fold into their readers."""
  if maker < 0:
    return True
  op = trace.ops[maker]
  if op.name in _FREE:
    return True
  if op.name in folding.POINTWISE and np.issubdtype(op.dtypes[0], np.integer):
    return True  # Clipping an id.
  if op.name not in ('mul', 'div'):
    return False
  made = op.outs[0] >= 0
  return any(
    t.fixed and np.unique(np.asarray(t.const)[made]).size == 1 for t in op.ins
  )


def _names(trace: record.Trace) -> tuple[Array, dict[int, tuple[str, ...]]]:
  """[scalars] a number for its set of names, and the sets."""
  code = np.zeros(trace.table.size, np.int64)
  order: dict[str, int] = {}
  for name, tensors in trace.names.items():
    order[name] = len(order)
    ids = np.unique(np.concatenate([t.ids[~t.is_const] for t in tensors]))
    code[ids] += 1 << len(order) - 1
  labels = {
    int(c): tuple(n for n, i in order.items() if int(c) >> i & 1)
    for c in np.unique(code)
  }
  return code, labels


class _Readers:
  """For every scalar, the equations that read it; places, not iterations."""

  def __init__(self, trace: record.Trace, cut: lifetimes.Boundary) -> None:
    found: dict[Any, list[Array]] = collections.defaultdict(list)
    for index, op in enumerate(trace.ops):
      for a in range(len(op.ins)):
        for ids in (cut.within[index][a], cut.across[index][a]):
          if ids.size:
            found[op.origin.equation, a].append(ids)
    self.found = {
      k: elements.distinct(np.concatenate(v)) for k, v in found.items()
    }
    self.code = np.zeros(trace.table.size, np.int64)
    for key, ids in self.found.items():
      digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
      self.code[ids] += int.from_bytes(digest, 'big') >> 8

  def of(self, scalars: Array) -> list[frozenset[Any]]:
    """The equations that read each of `scalars`."""
    out: list[set[Any]] = [set() for _ in scalars]
    for key, ids in self.found.items():
      at = np.minimum(np.searchsorted(ids, scalars), len(ids) - 1)
      for i in np.flatnonzero(ids[at] == scalars).tolist():
        out[i].add(key)
    return [frozenset(keys) for keys in out]
