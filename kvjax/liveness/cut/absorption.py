"""Absorption: a product with a weight that need never be formed.

Where v = u W is read by products alone, the weight may move to the other side,
q (u W)^T = (q W^T) u^T and p (u W) = (p u) W, and u is kept in place of v
(DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Redoing v then costs, a past
token and step, the difference of the two products instead of v itself. A
rotation by position between W and the reader stands in the way: there is no
one weight to move.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes, min_cut
from kvjax.liveness.program import evaluate, record, rules, scalars

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Absorption:
  """FLOPs a past token and step by graph node, and why others have none."""

  price: dict[int, float]
  refused: dict[int, str]


def find(
  trace: record.Trace, boundary: lifetimes.Boundary, graph: min_cut.Graph
) -> Absorption:
  """Prices the nodes that may be absorbed."""
  price: dict[int, float] = {}
  refused: dict[int, str] = {}
  readers_of = _readers(trace, boundary, graph)
  for i, node in enumerate(graph.nodes):
    side = _weighted(trace, node.maker)
    if side is None:
      continue
    readers = readers_of[i]
    reason = _reason(trace, readers) or _check(trace, node.maker, side)
    if reason:
      refused[i] = reason
      continue
    depth = trace.ops[node.maker].flops / 2
    extra = sum(_extra(trace, boundary, node, r, depth) for r in readers)
    if extra < node.flops:
      price[i] = max(extra, 0.0)
  return Absorption(price, refused)


def _weighted(trace: record.Trace, maker: int) -> int | None:
  """Which operand of a product is data, when the other is a weight."""
  if maker < 0 or trace.ops[maker].name != 'dot_general':
    return None
  fixed = [t.fixed for t in trace.ops[maker].ins]
  return fixed.index(False) if any(fixed) else None


def _readers(
  trace: record.Trace, boundary: lifetimes.Boundary, graph: min_cut.Graph
) -> dict[int, list[tuple[int, int]]]:
  """Operations and operands that read each node."""
  owner = np.full(trace.table.size, -1, np.int64)
  for i, node in enumerate(graph.nodes):
    owner[node.ids] = i
  out: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    for a in range(len(op.ins)):
      reads = boundary.within[index][a], boundary.across[index][a]
      for i in np.unique(owner[np.concatenate(reads)]).tolist():
        out[i].append((index, a))
  return out


def _reason(trace: record.Trace, readers: list[tuple[int, int]]) -> str:
  for index, _ in readers:
    op = trace.ops[index]
    if op.name == 'dot_general':
      continue
    rotated = op.name == 'mul' and any(_by_position(t) for t in op.ins)
    what = 'a table by position' if rotated else op.name
    return f'{what} stands between ({op.name} at {op.origin.source})'
  return ''


def _by_position(tensor: scalars.Tensor) -> bool:
  return tensor.fixed and np.unique(np.asarray(tensor.const)).size > 2


def _check(trace: record.Trace, maker: int, side: int) -> str:
  """Whether all positions are multiplied by one weight; tried on numbers."""
  op = trace.ops[maker]
  tensor = op.ins[side]
  draw = np.random.default_rng(0).normal(size=(2, *tensor.shape))
  first, second = draw.astype(np.asarray(tensor.const).dtype)
  apply = lambda a: np.asarray(_run(op, side, a), np.float64)
  together = apply(first + second)
  apart = apply(first) + apply(second)
  if not np.allclose(together, apart, rtol=1e-2, atol=1e-3):
    return 'the product is not linear in numbers'
  (order, (batch, _, _)), _ = _orders(op, side)
  ready = scalars.lookup(trace.table.available, tensor.ids)
  lead = order[: len(order) and _batch_rank(op)]
  if batch > 1 and _varies(ready, lead):
    return 'positions have weights of their own'
  return ''


def _orders(op: record.Op, side: int) -> tuple[Any, Any]:
  orders = rules.dot_orders(op.params, op.ins)
  return orders[side], orders[1 - side]


def _batch_rank(op: record.Op) -> int:
  return len(op.params['dimension_numbers'][1][0])


def _varies(ready: Array, axes: tuple[int, ...]) -> bool:
  return any(np.any(ready.min(axis) != ready.max(axis)) for axis in axes)


def _run(op: record.Op, side: int, value: Array) -> Any:
  ins = [t.const for t in op.ins]
  ins[side] = value
  return evaluate.evaluate(op.primitive, op.params, ins)[0]


def _extra(
  trace: record.Trace,
  boundary: lifetimes.Boundary,
  node: Any,
  reader: tuple[int, int],
  depth: float,
) -> float:
  """More FLOPs of one reader, for one past token and one new row.

  A score reads d_v features and would read d_u for each result; a mixture
  would mix d_u features for each weight.
  """
  index, side = reader
  op = trace.ops[index]
  position, known = boundary.position, trace.table.available
  gone = node.ids[known[node.ids] == known[node.ids].max()]
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[gone] = 0
  own, other = op.ins[side], op.ins[1 - side]
  new = scalars.lookup(known, op.outs[0]) == position
  reads = op.reads[side].push(scalars.lookup(mark, own.ids)) >= 0
  results = int((reads & new).sum())
  pairs, partners = _pairs(op, side, np.isin(own.ids, gone), reads & new, other)
  return 2 * (depth * min(results, partners) - pairs)


def _pairs(
  op: record.Op, side: int, mine: Array, results: Array, other: Any
) -> tuple[int, int]:
  """Products with the node's scalars, and the scalars they are made with."""
  (order, (b, m, k)), (theirs, (_, n, _)) = _orders(op, side)
  held = np.transpose(mine, order).reshape(b, m, k)
  live = np.transpose(rules.nonzero(other), theirs).reshape(b, n, k)
  shape = (b, m, n) if side == 0 else (b, n, m)
  out = results.reshape(shape)
  out = out if side == 0 else out.swapaxes(1, 2)
  at = np.einsum('bmk,bmn->bkn', held.astype(np.int64), out.astype(np.int64))
  at = at * live.swapaxes(1, 2)
  ids = np.transpose(other.ids, theirs).reshape(b, n, k).swapaxes(1, 2)
  return int(at.sum()), len(np.unique(ids[at > 0]))
