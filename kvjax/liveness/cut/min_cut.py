"""The cheapest things to keep: minimum cuts of bytes and recomputation.

A tensor of the past is kept (its bytes), or redone at every step (its FLOPs,
and all it reads is kept or redone in turn). What the future reads must be one
or the other, so a cache is a vertex cut between the input and the future,

  minimise  sum over kept of bytes  +  price * sum over redone of FLOPs,

exact and polynomial; prices from 0 to infinity give the frontier.
"""

import dataclasses
from fractions import Fraction

from kvjax.liveness.cut import maxflow
from kvjax.liveness.cut.lifetimes import Boundary
from kvjax.liveness.cut.nodes import Extent, Node, find_nodes, group_nodes
from kvjax.liveness.program import scalars
from kvjax.liveness.program.trace import Trace

Prices = dict[int, float]  # FLOPs of nodes that absorption makes cheaper
# A state costs its bytes once; shared among this many tokens it is cheap, but
# not so cheap that two states beat one.
LENGTH = 4096
# Capacities are integers. Costs are multiples of _TIE, so that what decides
# among equal costs fits below it.
_TIE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Graph:
  """Tensors of the past and what each is made of; `future` is the sink."""

  nodes: tuple[Node, ...]
  edges: tuple[tuple[int, int], ...]
  future: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Cut:
  """Numbers of the nodes kept and redone, and their cost."""

  kept: tuple[int, ...]
  redone: tuple[int, ...]
  bytes_per_token: float
  state_bytes: int
  flops_per_token: float


def build_graph(trace: Trace, boundary: Boundary) -> Graph:
  """Returns the graph of the past at a boundary."""
  nodes = group_nodes(trace, boundary)
  node_of = find_nodes(trace, nodes)
  edges = set()
  future = set()
  for index, op in enumerate(trace.ops):
    for ids in boundary.across[index]:
      future |= set(scalars.distinct(node_of[ids]).tolist())
    live = op.new_ids[boundary.live[op.new_ids]]
    results = scalars.distinct(node_of[live]).tolist()
    for ids in boundary.within[index]:
      for a in scalars.distinct(node_of[ids]).tolist():
        edges |= {(a, b) for b in results if a != b}
  return Graph(tuple(nodes), tuple(sorted(edges)), frozenset(future))


def find_cheapest(
  graph: Graph, price: Fraction | None, absorbed: Prices | None = None
) -> Cut:
  """Returns the best cut at a price.

  Args:
    graph: tensors of the past.
    price: bytes a FLOP; None redoes nothing that costs FLOPs.
    absorbed: FLOPs of nodes for which absorption is cheaper.
  """
  nodes = graph.nodes
  flops = [n.flops for n in nodes]
  for i, cheaper in (absorbed or {}).items():
    flops[i] = cheaper
  edges: list[tuple[object, object, int]] = []
  # A node is an arc from its input to its output. Cutting that arc keeps the
  # node; cutting the arc from the past to its input redoes it.
  for i in range(len(nodes)):
    keep, redo = _capacities(graph, i, price, round(flops[i]))
    edges.append((('in', i), ('out', i), keep))
    edges.append(('past', ('in', i), redo))
  # What a redone node is made of must be known: no cut separates the two.
  edges += [(('out', a), ('in', b), maxflow.INFINITE) for a, b in graph.edges]
  edges += [(('out', a), 'future', maxflow.INFINITE) for a in graph.future]
  side = maxflow.source_side(edges, 'past', 'future')
  redone = [i for i in range(len(nodes)) if ('in', i) not in side]
  known = {i for i in range(len(nodes)) if ('out', i) not in side}
  kept = sorted(known - set(redone))
  return Cut(
    tuple(kept),
    tuple(redone),
    sum(nodes[i].bytes_per_token for i in kept),
    sum(nodes[i].state_bytes for i in kept),
    sum(flops[i] for i in redone),
  )


def _capacities(
  graph: Graph, i: int, price: Fraction | None, flops: int
) -> tuple[int, int]:
  """Returns what keeping and redoing a node cost, as whole numbers."""
  node = graph.nodes[i]
  size = round(LENGTH * node.bytes_per_token) + node.state_bytes
  if price is None:  # FLOPs decide; bytes decide among equal FLOPs.
    per_flop = 1 << 60
    per_byte = 1
  elif price == 0:  # Bytes decide; FLOPs decide among equal bytes.
    per_flop = 1
    per_byte = 1 << 60
  else:
    per_flop = LENGTH * price.numerator << 20
    per_byte = price.denominator << 20
  keep = size * per_byte * _TIE + _tie(graph, i)
  redo = flops * per_flop * _TIE
  if node.extent is Extent.BAND:
    keep = maxflow.INFINITE
  if node.maker < 0 or node.decided:
    redo = maxflow.INFINITE  # Nothing makes the input anew.
  return keep, redo


def _tie(graph: Graph, i: int) -> int:
  """Returns what keeping a node costs beyond its bytes, to decide ties.

  Among equal costs a named tensor is kept, and the one nearest its reader.
  Nodes are numbered in the order in which they are made.
  """
  node = graph.nodes[i]
  late = (len(graph.nodes) - i) * _TIE // (1 << 14) // max(len(graph.nodes), 1)
  return late + (0 if node.names or node.maker < 0 else _TIE >> 12)


def find_corners(graph: Graph, absorbed: Prices) -> list[Cut]:
  """Returns every optimum as the price goes from 0 to infinity.

  Two neighbours cost the same at the price that is the bytes between them over
  the FLOPs between them, exactly. A third cut that is cheaper at that price is
  between them.
  """
  solve = lambda price: find_cheapest(graph, price, absorbed)

  def between(small: Cut, quick: Cut) -> list[Cut]:
    saved = Fraction(small.flops_per_token) - Fraction(quick.flops_per_token)
    extra = total_bytes(quick) - total_bytes(small)
    if saved <= 0 or extra <= 0:
      return []
    price = Fraction(extra) / saved / LENGTH
    middle = solve(price)
    cost = lambda c: (
      total_bytes(c) + LENGTH * price * Fraction(c.flops_per_token)
    )
    if cost(middle) >= cost(small):
      return []
    return [*between(small, middle), middle, *between(middle, quick)]

  least = solve(Fraction(0))
  most = solve(None)
  cost = lambda c: (total_bytes(c), c.flops_per_token)
  if cost(most) == cost(least):
    return [most]
  return [least, *between(least, most), most]


def total_bytes(cut: Cut) -> int:
  """Returns the bytes of a cache of `LENGTH` tokens."""
  return round(LENGTH * cut.bytes_per_token) + cut.state_bytes
