"""Which tensors are computed from which, on both sides of a token boundary."""

import collections
from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness import report
from kvjax.liveness.analysis import settle
from kvjax.liveness.cut import lifetimes
from kvjax.liveness.cut.nodes import Node
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.verdict import Analysis

Array = np.ndarray
NONE = -1


# By label and side: 'new' for the row of the new token, else 'kept' or 'past'.
Groups = dict[tuple[str, str], Array]


def crossing(
  program: Callable[..., Any], x: Any, axis: int = 0
) -> report.Dataflow:
  """Returns the program's tensors before a token boundary and at it.

  Nodes are the input `x`, the output `y`, every named tensor (a name that is
  used in several places is numbered) and what is kept. `side` is 'kept' or
  'past' for the rows before the boundary and 'new' for the row of the next
  token. An edge (a, b) says that b is computed from a, perhaps through tensors
  that have no node. Edges from the past to the new row start at what is kept,
  or at what every step computes again from what is kept.

  Args:
    program: a function of one array to arrays, without a cache.
    x: an input, as for `analyze`.
    axis: the axis of `x` that counts positions.
  """
  verdict, _ = settle(program, x, axis)
  groups = _groups(verdict)
  need = lifetimes.find_needed(verdict.trace)
  owner = np.full(verdict.trace.table.size, NONE, np.int64)
  for i, ids in enumerate(groups.values()):
    owner[ids[need[ids]]] = i
  # A later group may take all scalars of another one, which has no node then.
  drawn = np.unique(owner[owner != NONE]).tolist()
  edges = [
    (drawn.index(source), target)
    for target, group in enumerate(drawn)
    for source in _made_of(verdict.trace, owner, group)
  ]
  labels = list(groups)
  return report.Dataflow(tuple(labels[i] for i in drawn), tuple(sorted(edges)))


def _groups(verdict: Analysis) -> Groups:
  """Returns groups; a later one takes scalars from those before."""
  trace = verdict.trace
  position = verdict.boundary.position
  tensors = {'x': _data(trace.x), 'y': _data(*trace.outputs)}
  for name, places in trace.names.items():
    for i, tensor in enumerate(places):
      label = name if len(places) == 1 else f'{name}.{i}'
      tensors[label] = _data(tensor)
  kept = _kept(verdict)
  for name, ids in kept.items():
    if name not in trace.names:
      tensors[name] = ids
  known = trace.table.available
  saved = np.concatenate([np.zeros(0, np.int64), *kept.values()])
  groups = {}
  for label, ids in tensors.items():
    past = ids[known[ids] < position]
    side = 'kept' if np.isin(past, saved).any() else 'past'
    groups[label, side] = past
    groups[label, 'new'] = ids[known[ids] == position]
  return groups


def _kept(verdict: Analysis) -> dict[str, Array]:
  parts_of = collections.defaultdict(list)
  for i in verdict.cut.kept:
    parts_of[verdict.names[i]].append(
      _whole(verdict.trace, verdict.graph.nodes[i])
    )
  return {name: np.concatenate(parts) for name, parts in parts_of.items()}


def _whole(trace: Trace, node: Node) -> Array:
  """Returns scalars of every position, if one equation makes the tensor."""
  if node.maker < 0 or node.names:
    return node.ids
  equation = trace.ops[node.maker].origin.equation
  ops = [op for op in trace.ops if op.origin.equation == equation]
  ids = np.concatenate([ids[ids >= 0] for op in ops for ids in op.outs])
  return np.unique(np.concatenate([node.ids, ids]))


def _data(*tensors: Tensor) -> Array:
  return np.unique(np.concatenate([t.ids[~t.is_const] for t in tensors]))


def _made_of(trace: Trace, owner: Array, target: int) -> list[int]:
  """Returns the groups from which the target is computed directly."""
  mark = np.where(owner == target, 0, lifetimes.NEVER).astype(np.int32)
  shut = (owner != NONE) & (owner != target)
  for op in reversed(trace.ops):
    lifetimes.pull(op, lifetimes.gather_results(op, mark, shut), mark)
  sources = set(np.unique(owner[mark >= 0]).tolist())
  return sorted(sources - {NONE, target})
