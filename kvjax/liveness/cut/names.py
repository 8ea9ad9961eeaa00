"""Names for tensors that have none."""

import collections
from typing import Any

import numpy as np

from kvjax.liveness.cut.min_cut import Cut, Graph
from kvjax.liveness.cut.nodes import Extent, Node
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.verdict import Analysis


class Labels:
  """Names of a graph's tensors, for any cut through the graph."""

  def __init__(self, trace: Trace, graph: Graph) -> None:
    self.trace = trace
    self.graph = graph
    self.given_names = _given_names(trace, graph)
    self.layers = _layers(trace, graph, self.given_names)
    self._stems = _stems(trace, graph)

  def name_nodes(self, cut: Cut) -> tuple[str, ...]:
    """Returns a name for every node: from the program, or of its equation.

    Nodes kept together for one reader (the halves of a rotated key) share a
    name.
    """
    first_of = self._joined(cut)
    count: collections.Counter[str] = collections.Counter()
    new_names: dict[int, str] = {}
    out = []
    for i, node in enumerate(self.graph.nodes):
      if self.given_names[i]:
        out.append(self.given_names[i])
        continue
      first = first_of.get(i, i)
      if first not in new_names:
        base = _base(self.trace, node)
        count[base] += 1
        number = count[base]
        new_names[first] = base if number == 1 else f'{base}.{number}'
      out.append(new_names[first])
    return tuple(out)

  def _joined(self, cut: Cut) -> dict[int, int]:
    """Returns for kept nodes the first node of those that a reader joins."""
    out: dict[int, int] = {}
    same: dict[Any, int] = {}  # by stem and readers
    parts: dict[Any, list[int]] = collections.defaultdict(list)  # by equation
    for i in cut.kept:
      node = self.graph.nodes[i]
      key = self._stems[i], node.readers
      part = parts[_equation(self.trace, node)]
      shared = (j for j in part if node.readers & self.graph.nodes[j].readers)
      first = min(same.get(key, i), next(shared, i))
      out[i] = out.get(first, i)
      same.setdefault(key, i)
      part.append(i)
    return out


def _given_names(trace: Trace, graph: Graph) -> list[str]:
  """Returns the name of each node that has the fewest scalars, or ''."""
  size = lambda name: len(trace.named_ids[name])
  return [min(node.names, key=size, default='') for node in graph.nodes]


def _layers(trace: Trace, graph: Graph, names: list[str]) -> list[int]:
  """Returns which of the tensors of its name each node is; 0 without a name."""
  out = [0] * len(names)
  for name, tensors in trace.names.items():
    layer_of = np.zeros(trace.table.size, np.int64)
    # A view of one scalar under one name counts for the first tensor.
    for layer in reversed(range(len(tensors))):
      ids = tensors[layer].ids
      layer_of[ids[ids >= 0]] = layer
    for i, node in enumerate(graph.nodes):
      if names[i] == name:
        out[i] = int(layer_of[node.ids[0]])
  return out


def describe_kept(analysis: Analysis) -> list[str]:
  """Returns what is kept, with the equations that make it."""
  out = []
  for i in analysis.cut.kept:
    maker = analysis.graph.nodes[i].maker
    op = analysis.trace.ops[maker] if maker >= 0 else None
    source = f'{op.name} at {op.origin.source}' if op else 'the input'
    out.append(f'{analysis.names[i]} ({source})')
  return list(dict.fromkeys(out))


def _equation(trace: Trace, node: Node) -> Any:
  return None if node.maker < 0 else trace.ops[node.maker].origin.equation


def _base(trace: Trace, node: Node) -> str:
  if node.maker < 0:
    return 'x'
  if node.extent is Extent.STATE:
    return 'carry'
  return trace.ops[node.maker].name


def _stems(trace: Trace, graph: Graph) -> list[frozenset[Any]]:
  """Returns for every node the products its pointwise part starts from."""
  sources = collections.defaultdict(set)
  for a, b in graph.edges:
    sources[b].add(a)
  memo: dict[int, frozenset[Any]] = {}

  def stem(i: int) -> frozenset[Any]:
    if i not in memo:
      memo[i] = frozenset()  # The search ends at a state made from itself.
      memo[i] = _mixing_stem(trace, graph.nodes[i]) or frozenset().union(
        *(stem(j) for j in sources[i])
      )
    return memo[i]

  return [stem(i) for i in range(len(graph.nodes))]


def _mixing_stem(trace: Trace, node: Node) -> frozenset[Any]:
  if node.maker < 0:
    return frozenset([-1])
  op = trace.ops[node.maker]
  mixes = op.name == 'dot_general'
  return frozenset([op.origin.equation] if mixes else [])
