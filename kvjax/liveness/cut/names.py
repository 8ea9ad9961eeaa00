"""Names for tensors that have none."""

import collections
from typing import TYPE_CHECKING, Any

import numpy as np

from kvjax.liveness.cut import min_cut
from kvjax.liveness.program import record

if TYPE_CHECKING:
  from kvjax.liveness import analysis


class Labels:
  """What a graph's tensors are called, whichever cut is made through it."""

  def __init__(self, trace: record.Trace, graph: min_cut.Graph) -> None:
    self.trace, self.graph = trace, graph
    self.stems = _stems(trace, graph)
    self.own = _own_names(trace, graph)
    self.place = _places(trace, graph, self.own)

  def of(self, cut: min_cut.Cut) -> tuple[str, ...]:
    """A name for every tensor: its most special own, or that of its equation.

    Tensors kept together for one reader (the halves of a rotated key) share
    one.
    """
    together = self._together(cut)
    count: collections.Counter[str] = collections.Counter()
    shared: dict[int, str] = {}
    out = []
    for i, node in enumerate(self.graph.nodes):
      if self.own[i]:
        out.append(self.own[i])
        continue
      one = together.get(i, i)
      if one not in shared:
        base = _base(self.trace, node)
        count[base] += 1
        shared[one] = base if count[base] == 1 else f'{base}.{count[base]}'
      out.append(shared[one])
    return tuple(out)

  def _together(self, cut: min_cut.Cut) -> dict[int, int]:
    """For kept nodes, the first of those that are one tensor to a reader."""
    out: dict[int, int] = {}
    same: dict[Any, int] = {}  # by stem and readers
    parts: dict[Any, list[int]] = collections.defaultdict(list)  # by equation
    for i in cut.kept:
      node = self.graph.nodes[i]
      key = self.stems[i], node.readers
      part = parts[_equation(self.trace, node)]
      alike = (j for j in part if node.readers & self.graph.nodes[j].readers)
      first = min(same.get(key, i), next(alike, i))
      out[i] = out.get(first, i)
      same.setdefault(key, i)
      part.append(i)
    return out


def _own_names(trace: record.Trace, graph: min_cut.Graph) -> list[str]:
  """The rarest name of each tensor, or none."""
  size = {
    name: len(np.unique(np.concatenate([t.ids.reshape(-1) for t in ts])))
    for name, ts in trace.names.items()
  }
  names = [node.names for node in graph.nodes]
  return [min(own, key=lambda n: size[n], default='') for own in names]


def _places(
  trace: record.Trace, graph: min_cut.Graph, names: list[str]
) -> list[int]:
  """Which of the tensors of its name holds each node; 0 where it has none."""
  out = [0] * len(names)
  for name, tensors in trace.names.items():
    owner = np.zeros(trace.table.size, np.int64)
    for place in reversed(range(len(tensors))):
      ids = tensors[place].ids
      owner[ids[ids >= 0]] = place
    for i, node in enumerate(graph.nodes):
      if names[i] == name:
        out[i] = int(owner[node.ids[0]])
  return out


def places(verdict: 'analysis.Verdict') -> list[str]:
  """What is kept, and the equations that make it."""
  out = {}
  for i in verdict.cut.kept:
    maker = verdict.graph.nodes[i].maker
    source = 'the input'
    if maker >= 0:
      op = verdict.trace.ops[maker]
      source = f'{op.name} at {op.origin.source}'
    out[verdict.names[i]] = source
  return [f'{name} ({source})' for name, source in out.items()]


def _equation(trace: record.Trace, node: Any) -> Any:
  return None if node.maker < 0 else trace.ops[node.maker].origin.equation


def _base(trace: record.Trace, node: Any) -> str:
  if node.maker < 0:
    return 'x'
  return 'carry' if node.carry else trace.ops[node.maker].name


def _stems(trace: record.Trace, graph: min_cut.Graph) -> list[frozenset[Any]]:
  """For every node, the equations its pointwise part starts from."""
  made_of = collections.defaultdict(set)
  for a, b in graph.edges:
    made_of[b].add(a)
  memo: dict[int, frozenset[Any]] = {}

  def stem(i: int) -> frozenset[Any]:
    if i not in memo:
      memo[i] = frozenset()  # A state made from itself ends here.
      memo[i] = _own_stem(trace, graph.nodes[i]) or frozenset().union(
        *(stem(j) for j in made_of[i])
      )
    return memo[i]

  return [stem(i) for i in range(len(graph.nodes))]


def _own_stem(trace: record.Trace, node: Any) -> frozenset[Any]:
  if node.maker < 0:
    return frozenset([-1])
  op = trace.ops[node.maker]
  mixes = op.name == 'dot_general'
  return frozenset([op.origin.equation] if mixes else [])
