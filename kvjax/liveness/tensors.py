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

from kvjax.liveness import passes
from kvjax.liveness import trace as tracing

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Node:
  """One tensor of the past, as it stands at the boundary."""

  ids: Array
  maker: int  # number of the operation, -1 for the program's input
  names: tuple[str, ...]
  readers: int  # a number for the set of equations that read it
  frontier: bool  # the future reads it without anything between
  rows: int  # positions it holds at the boundary
  width: int  # scalars a position
  unbounded: bool  # it holds every position
  carry: bool  # a state: one row, made from the row before
  band: bool  # several rows that grow: no fixed row or state holds it
  itemsize: int
  flops: float  # to redo it, a past token

  @property
  def bytes_per_token(self) -> int:
    return 0 if self.carry else self.width * self.itemsize

  @property
  def state_bytes(self) -> int:
    return self.width * self.itemsize if self.carry else 0


def group(trace: tracing.Trace, cut: passes.Boundary) -> list[Node]:
  """The tensors of the past at a boundary."""
  names, labels = _names(trace)
  readers = _readers(trace, cut)
  maker = trace.table.maker
  live = np.flatnonzero(cut.live)
  key = np.stack(
    [maker[live], names[live], readers[live], cut.frontier[live]], 1
  )
  _, index = np.unique(key, axis=0, return_inverse=True)
  index = index.reshape(-1)
  parts = [live[index == i] for i in range(index.max(initial=-1) + 1)]
  groups: dict[Any, list[Array]] = collections.defaultdict(list)
  for ids in parts:
    op = trace.ops[maker[ids[0]]] if maker[ids[0]] >= 0 else None
    groups[_kind(op, ids, names, cut)].append(ids)
  siblings = {kind[0] for kind in groups if not kind[-1]}
  return [
    _node(
      trace,
      cut,
      ids,
      labels[int(names[ids[0]])],
      int(readers[ids[0]]),
      kind[0] in siblings,
    )
    for kind, members in groups.items()
    for ids in _join_rows(trace, members)
  ]


def _kind(
  op: tracing.Op | None, ids: Array, names: Array, cut: passes.Boundary
) -> tuple[Any, ...]:
  """What the iterations of one loop, even a Python one, have in common."""
  frontier = bool(cut.frontier[ids[0]])
  if op is None:
    return (None, int(names[ids[0]])), frontier
  where = (op.origin.source, op.name, op.outs[0].shape, str(op.dtypes))
  return (where, int(names[ids[0]])), frontier


def _join_rows(trace: tracing.Trace, parts: list[Array]) -> list[Array]:
  """Joins parts that hold different positions: rows of one tensor."""
  joined: list[tuple[set[int], list[Array]]] = []
  for ids in parts:
    times = set(trace.table.available[ids].tolist())
    for held, members in joined:
      if not held & times:
        held |= times
        members.append(ids)
        break
    else:
      joined.append((times, [ids]))
  return [np.sort(np.concatenate(members)) for _, members in joined]


def _node(
  trace: tracing.Trace,
  cut: passes.Boundary,
  ids: Array,
  names: tuple[str, ...],
  readers: int,
  has_past: bool,
) -> Node:
  times, sizes = np.unique(trace.table.available[ids], return_counts=True)
  maker = int(trace.table.maker[ids[0]])
  frontier = bool(cut.frontier[ids[0]])
  grows = len(sizes) > 3 and bool(np.all(np.diff(sizes[-3:]) > 0))
  single = len(times) == 1 and frontier and maker >= 0
  width = int(sizes[-1])
  if grows:
    width = max(1, round(len(ids) / cut.position))
  flops = trace.ops[maker].flops if maker >= 0 else 0.0
  return Node(
    ids=ids,
    maker=maker,
    names=names,
    readers=readers,
    frontier=frontier,
    rows=len(times),
    width=width,
    unbounded=bool(times[0] <= 2 and times[-1] >= cut.position - 2),
    carry=single and has_past,
    band=grows,
    itemsize=int(trace.table.itemsize[ids[0]]),
    flops=0.0 if _free(trace, maker) else flops * width,
  )


_FREE = frozenset(('convert_element_type', 'reduce_precision', 'neg', 'copy'))


def _free(trace: tracing.Trace, maker: int) -> bool:
  """Casts and products with one constant number fold into their readers."""
  if maker < 0:
    return True
  op = trace.ops[maker]
  if op.name in _FREE:
    return True
  if op.name not in ('mul', 'div'):
    return False
  return any(
    t.fixed and np.unique(np.asarray(t.const)).size == 1 for t in op.ins
  )


def _names(trace: tracing.Trace) -> tuple[Array, dict[int, tuple[str, ...]]]:
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


def _readers(trace: tracing.Trace, cut: passes.Boundary) -> Array:
  """[scalars] a number for the set of equations that read it."""
  found: dict[Any, list[Array]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    for a in range(len(op.ins)):
      for ids in (cut.within[index][a], cut.across[index][a]):
        if ids.size:
          found[op.origin.equation, a].append(ids)
  code = np.zeros(trace.table.size, np.int64)
  for key, parts in found.items():
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    code[np.unique(np.concatenate(parts))] += int.from_bytes(digest, 'big') >> 8
  return code
