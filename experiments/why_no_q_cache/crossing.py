"""Who is made of whom, on both sides of a token boundary: for pictures."""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kvjax.liveness import report
from kvjax.liveness.analysis import settle
from kvjax.liveness.cut import lifetimes
from kvjax.liveness.cut.nodes import Node
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.verdict import Analysis

Array = np.ndarray
NONE = -1


@dataclasses.dataclass(frozen=True)
class _Group:
  name: str
  new: bool  # the row of the new token; else what came before
  kept: bool
  ids: Array


def crossing(
  program: Callable[..., Any], x: Any, axis: int = 0
) -> report.Dataflow:
  """Returns the program's tensors before a token boundary and at it.

  Nodes are the input `x`, the output `y`, every named tensor (a name given in
  several places has a number each) and what is kept. `side` is 'kept' or
  'past' for the rows before the boundary and 'new' for the row of the next
  token. An edge says that one is made of the other, by way of tensors that
  have no node. Edges from the past to the new row start at what is kept, or
  at what is made of it anew at every step.

  Args:
    program: a function of one array to arrays, without a cache.
    x: an input, as for `analyze`.
    axis: the axis of `x` that counts positions.
  """
  verdict, _ = settle(program, x, axis)
  groups = _groups(verdict, verdict.boundary.position)
  need = lifetimes.find_needed(verdict.trace)
  owner = np.full(verdict.trace.table.size, NONE, np.int64)
  for i, group in enumerate(groups):
    owner[group.ids[need[group.ids]]] = i
  # A name may cover another's scalars: whoever kept none has no node.
  held = [i for i in range(len(groups)) if np.any(owner == i)]
  number = {i: n for n, i in enumerate(held)}
  edges = [
    (number[a], number[b])
    for b in held
    for a in _made_of(verdict.trace, owner, b)
  ]
  sides = [_side(groups[i]) for i in held]
  nodes = zip((groups[i].name for i in held), sides, strict=True)
  return report.Dataflow(tuple(nodes), tuple(sorted(edges)))


def _side(group: _Group) -> str:
  return 'new' if group.new else 'kept' if group.kept else 'past'


def _groups(verdict: Analysis, position: int) -> list[_Group]:
  """Later groups take scalars from earlier ones: outputs, names, the cut."""
  trace = verdict.trace
  tensors: dict[str, Array] = {'x': _data(trace.x)}
  tensors['y'] = np.concatenate([_data(t) for t in trace.outputs])
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
  out = []
  for label, ids in tensors.items():
    past = ids[known[ids] < position]
    stays = bool(np.isin(past, saved).any())
    out.append(_Group(label, False, stays, past))
    out.append(_Group(label, True, False, ids[known[ids] == position]))
  return out


def _kept(verdict: Analysis) -> dict[str, Array]:
  found = collections.defaultdict(list)
  for i in verdict.cut.kept:
    found[verdict.names[i]].append(
      _whole(verdict.trace, verdict.graph.nodes[i])
    )
  return {name: np.concatenate(parts) for name, parts in found.items()}


def _whole(trace: Trace, node: Node) -> Array:
  """A kept tensor's scalars at every position, if one equation makes them."""
  if node.maker < 0 or node.names:
    return node.ids
  equation = trace.ops[node.maker].origin.equation
  made = [op.outs for op in trace.ops if op.origin.equation == equation]
  ids = np.concatenate([o[o >= 0] for outs in made for o in outs])
  return np.unique(np.concatenate([node.ids, ids]))


def _data(tensor: Any) -> Array:
  return np.unique(tensor.ids[~tensor.is_const])


def _made_of(trace: Trace, owner: Array, target: int) -> list[int]:
  """The groups that some of the target's scalars are made of directly."""
  mark = np.where(owner == target, 0, lifetimes.NEVER).astype(np.int32)
  shut = (owner != NONE) & (owner != target)
  for op in reversed(trace.ops):
    lifetimes.pull(op, lifetimes.gather_results(op, mark, shut), mark)
  found = set(np.unique(owner[mark >= 0]).tolist())
  return sorted(found - {NONE, target})
