"""Absorption: a product with a weight need not be formed.

Where v = u W is read by products alone, the weight may move to the other side,
q (u W)^T = (q W^T) u^T and p (u W) = (p u) W, and u is kept in place of v
(DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Redoing v then costs, a past
token and step, the difference of the two products instead of v itself. A
rotation by position between W and the reader forbids this: the weight that
would move differs from position to position.
"""

import collections
import dataclasses

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.cut.lifetimes import Boundary
from kvjax.liveness.cut.min_cut import Graph, Prices
from kvjax.liveness.cut.nodes import Node, find_nodes
from kvjax.liveness.program import rules, scalars
from kvjax.liveness.program.trace import Op, Trace

Array = np.ndarray
Reader = tuple[int, int]  # an operation and which of its operands


@dataclasses.dataclass(frozen=True)
class Absorption:
  """Products with a weight, by the number of the node."""

  price: Prices  # of those absorbed: FLOPs a past token and step
  refused: dict[int, str]  # of the others: the reason


def find_absorption(
  trace: Trace, boundary: Boundary, graph: Graph
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
    reason = _find_obstacle(trace, trace.ops[node.maker], side, readers)
    if reason:
      refused[i] = reason
      continue
    extra = sum(_extra(trace, boundary, node, r) for r in readers)
    if extra < node.flops:
      price[i] = max(extra, 0.0)
  return Absorption(price, refused)


def _weighted(trace: Trace, maker: int) -> int | None:
  """Returns the operand of a product that is data, if one is a weight."""
  if maker < 0 or trace.ops[maker].name != 'dot_general':
    return None
  fixed = [t.fixed for t in trace.ops[maker].ins]
  return fixed.index(False) if any(fixed) else None


def _readers(
  trace: Trace, boundary: Boundary, graph: Graph
) -> dict[int, list[Reader]]:
  """Returns the operations and operands that read each node."""
  node_of = find_nodes(trace, graph.nodes)
  out: dict[int, list[Reader]] = collections.defaultdict(list)
  for index, op in enumerate(trace.ops):
    for a in range(len(op.ins)):
      reads = boundary.within[index][a], boundary.across[index][a]
      for i in np.unique(node_of[np.concatenate(reads)]).tolist():
        out[i].append((index, a))
  return out


def _find_obstacle(
  trace: Trace, product: Op, side: int, readers: list[Reader]
) -> str:
  """Returns what forbids absorption, or ''."""
  for index, _ in readers:
    op = trace.ops[index]
    if op.name != 'dot_general':
      tables = [np.asarray(t.const) for t in op.ins if t.fixed]
      rotated = op.name == 'mul' and any(np.unique(t).size > 2 for t in tables)
      what = 'a table by position' if rotated else op.name
      return f'{what} stands between ({op.name} at {op.origin.source})'
  batch_axes = product.equation.params['dimension_numbers'][1][side]
  ready = scalars.lookup(trace.table.available, product.ins[side].ids)
  if any(np.any(ready.min(a) != ready.max(a)) for a in batch_axes):
    return 'the weight differs from position to position'
  return ''


def _extra(
  trace: Trace, boundary: Boundary, node: Node, reader: Reader
) -> float:
  """Returns more FLOPs of one reader, for one past token and one new row.

  A score reads d_v features and would read d_u for each result; a mixture
  would mix d_u features for each weight. Counted for the last past row, which
  every new row may read, whatever the window.
  """
  index, side = reader
  op = trace.ops[index]
  depth = trace.ops[node.maker].flops / 2  # A product and a sum a feature.
  known = trace.table.available
  last_row = node.ids[known[node.ids] == known[node.ids].max()]
  mark = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  mark[last_row] = 0
  operand = op.ins[side]
  new = scalars.lookup(known, op.outs[0]) == boundary.position
  reads = op.reads[side].push(scalars.lookup(mark, operand.ids)) >= 0
  results = reads & new
  pairs, partners = _pairs(op, side, np.isin(operand.ids, last_row), results)
  return 2 * (depth * min(int(results.sum()), partners) - pairs)


def _pairs(op: Op, side: int, row: Array, results: Array) -> tuple[int, int]:
  """Counts products with a row, and the scalars that the row meets in them.

  Args:
    op: a product.
    side: the operand that has the row.
    row: where in the operand the row is.
    results: where in the result it is read.
  """
  orders = rules.dot_orders(op.equation.params, op.ins)
  order, (b, m, k) = orders[side]
  other_order, (_, n, _) = orders[1 - side]
  other = op.ins[1 - side]
  rows = np.transpose(row, order).reshape(b, m, k)
  live = np.transpose(rules.nonzero(other), other_order).reshape(b, n, k)
  if side == 0:
    out = results.reshape(b, m, n)
  else:
    out = results.reshape(b, n, m).swapaxes(1, 2)
  count = np.einsum('bmk,bmn->bkn', rows.astype(np.int64), out.astype(np.int64))
  count = count * live.swapaxes(1, 2)
  ids = np.transpose(other.ids, other_order).reshape(b, n, k).swapaxes(1, 2)
  return int(count.sum()), len(np.unique(ids[count > 0]))
