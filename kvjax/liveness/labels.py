"""Names for tensors that have none."""

import collections
from typing import TYPE_CHECKING, Any

import numpy as np

from kvjax.liveness import cut as cutting
from kvjax.liveness import trace as tracing

if TYPE_CHECKING:
  from kvjax.liveness import analysis


def label(
    trace: tracing.Trace, graph: cutting.Graph, cut: cutting.Cut
) -> tuple[str, ...]:
  """A name for every tensor: its most special own, or that of its equation.

  Tensors kept together for one reader (the halves of a rotated key) share one.
  """
  size = {
      name: len(np.unique(np.concatenate([t.ids.reshape(-1) for t in ts])))
      for name, ts in trace.names.items()
  }
  together = _together(trace, graph, cut)
  count: collections.Counter[str] = collections.Counter()
  shared: dict[int, str] = {}
  out = []
  for i, node in enumerate(graph.nodes):
    if node.names:
      out.append(min(node.names, key=lambda n: size[n]))
      continue
    one = together.get(i, i)
    if one not in shared:
      base = _base(trace, node)
      count[base] += 1
      shared[one] = base if count[base] == 1 else f'{base}.{count[base]}'
    out.append(shared[one])
  return tuple(out)


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


def _together(
    trace: tracing.Trace, graph: cutting.Graph, cut: cutting.Cut
) -> dict[int, int]:
  """For kept nodes, the first of those that are one tensor to a reader."""
  stems = _stems(trace, graph)
  out: dict[int, int] = {}
  for i in cut.kept:
    out[i] = i
    a = graph.nodes[i]
    for j in cut.kept[: cut.kept.index(i)]:
      b = graph.nodes[j]
      same = stems[i] == stems[j] and a.readers == b.readers
      part = _equation(trace, a) == _equation(trace, b)
      if same or (part and a.readers & b.readers):
        out[i] = out[j]
        break
  return out


def _equation(trace: tracing.Trace, node: Any) -> Any:
  return None if node.maker < 0 else trace.ops[node.maker].origin.equation


def _base(trace: tracing.Trace, node: Any) -> str:
  if node.maker < 0:
    return 'x'
  return 'carry' if node.carry else trace.ops[node.maker].name


def _stems(trace: tracing.Trace, graph: cutting.Graph) -> list[frozenset[Any]]:
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


def _own_stem(trace: tracing.Trace, node: Any) -> frozenset[Any]:
  if node.maker < 0:
    return frozenset([-1])
  op = trace.ops[node.maker]
  mixes = op.name == 'dot_general'
  return frozenset([op.origin.equation] if mixes else [])
