"""The cheapest things to keep: minimum cuts of bytes and recomputation.

A tensor of the past is kept (its bytes), or redone at every step (its FLOPs,
and all it reads is kept or redone in turn). What the future reads must be one
or the other, so a cache is a vertex cut between the input and the future,

  minimise  sum over kept of bytes  +  price * sum over redone of FLOPs,

exact and polynomial; prices from 0 to infinity give the frontier.
"""

import dataclasses
from collections.abc import Collection, Sequence
from fractions import Fraction

import numpy as np

from kvjax.liveness.cut import lifetimes, maxflow
from kvjax.liveness.cut import nodes as grouping
from kvjax.liveness.program import record, scalars

Node = grouping.Node
# A state costs its bytes once; shared among this many tokens it is cheap, but
# not so cheap that two states beat one.
LENGTH = 4096
_TIE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Graph:
  """Tensors of the past and who is made of whom; `future` is its sink."""

  nodes: tuple[Node, ...]
  edges: tuple[tuple[int, int], ...]
  future: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Cut:
  """Numbers of the nodes kept and redone, and what they come to."""

  kept: tuple[int, ...]
  redone: tuple[int, ...]
  bytes_per_token: float
  state_bytes: int
  flops_per_token: float


def build(trace: record.Trace, boundary: lifetimes.Boundary) -> Graph:
  """The graph of the past at a boundary."""
  nodes = grouping.group(trace, boundary)
  owner = np.full(trace.table.size, -1, np.int64)
  for i, node in enumerate(nodes):
    owner[node.ids] = i
  edges = set()
  future = set()
  for index, op in enumerate(trace.ops):
    for ids in boundary.across[index]:
      future |= set(scalars.distinct(owner[ids]).tolist())
    outs = np.concatenate([o[o >= 0] for o in op.outs])
    makes = scalars.distinct(owner[outs[boundary.live[outs]]]).tolist()
    for ids in boundary.within[index]:
      for a in scalars.distinct(owner[ids]).tolist():
        edges |= {(a, b) for b in makes if a != b}
  return Graph(tuple(nodes), tuple(sorted(edges)), frozenset(future))


def cheapest(
  graph: Graph,
  price: Fraction | None,
  absorbed: dict[int, float] | None = None,
  held: Collection[int] = (),
  lost: Collection[int] = (),
) -> Cut:
  """The best cut at `price` bytes a FLOP; None: never redo what costs.

  Nodes `held` are kept whatever they cost, nodes `lost` are not. Where that
  cannot be, the cut breaks it.
  """
  edges: list[tuple[object, object, int]] = []
  for i in range(len(graph.nodes)):
    keep, redo = _costs(graph, i, price, absorbed or {})
    keep = maxflow.INFINITE if i in lost else keep
    edges.append((('in', i), ('out', i), keep))
    if i in held:
      edges.append(('past', ('in', i), maxflow.INFINITE))
      edges.append((('out', i), 'future', maxflow.INFINITE))
    edges.append(('past', ('in', i), redo))
  for a, b in graph.edges:
    edges.append((('out', a), ('in', b), maxflow.INFINITE))
  for a in graph.future:
    edges.append((('out', a), 'future', maxflow.INFINITE))
  side = maxflow.source_side(edges, 'past', 'future')
  kept, redone = [], []
  for i in range(len(graph.nodes)):
    if ('in', i) not in side:
      redone.append(i)
    elif ('out', i) not in side:
      kept.append(i)
  return _cut(graph, kept, redone, absorbed or {})


def _costs(
  graph: Graph, i: int, price: Fraction | None, absorbed: dict[int, float]
) -> tuple[int, int]:
  """Whole numbers: bytes and FLOPs at the price, then ties."""
  node = graph.nodes[i]
  flops = round(absorbed.get(i, node.flops))
  size = bytes_of(node)
  if price is None:  # FLOPs first, then bytes.
    up, down = 1 << 60, 1
  elif price == 0:  # Bytes first, then FLOPs.
    up, down = 1, 1 << 60
  else:
    up, down = LENGTH * price.numerator << 20, price.denominator << 20
  given = node.maker < 0 or node.held
  redo = maxflow.INFINITE if given else flops * up * _TIE
  return _keep(graph, i, size * down), redo


def _keep(graph: Graph, i: int, size: int) -> int:
  """Among equals a named tensor is kept, and the one nearest its reader."""
  node = graph.nodes[i]
  if node.band:
    return maxflow.INFINITE
  return size * _TIE + tie(graph, i)


def tie(graph: Graph, i: int) -> int:
  """What decides among keeps of equal bytes and FLOPs."""
  node = graph.nodes[i]
  late = (len(graph.nodes) - i) * _TIE // (1 << 14) // max(len(graph.nodes), 1)
  return late + (0 if node.names or node.maker < 0 else _TIE >> 12)


def closed(
  graph: Graph, kept: Collection[int], absorbed: dict[int, float]
) -> Cut:
  """The cut that keeps what is needed of `kept`, and redoes all else."""
  made_of: dict[int, list[int]] = {}
  for a, b in graph.edges:
    made_of.setdefault(b, []).append(a)
  seen, todo = set(graph.future), list(graph.future)
  while todo:
    i = todo.pop()
    if i not in kept:
      new = set(made_of.get(i, ())) - seen
      seen |= new
      todo += new
  held = sorted(seen & set(kept))
  return _cut(graph, held, sorted(seen - set(kept)), absorbed)


def _cut(
  graph: Graph,
  kept: Sequence[int],
  redone: Sequence[int],
  absorbed: dict[int, float],
) -> Cut:
  nodes = graph.nodes
  return Cut(
    tuple(kept),
    tuple(redone),
    sum(nodes[i].bytes_per_token for i in kept),
    sum(nodes[i].state_bytes for i in kept),
    sum(absorbed.get(i, nodes[i].flops) for i in redone),
  )


def frontier(
  graph: Graph,
  absorbed: dict[int, float] | None = None,
  lost: Collection[int] = (),
) -> list[Cut]:
  """Every optimum as the price goes from 0 to infinity.

  Where one gives way to the next the price is the bytes between them over the
  FLOPs between them, exactly. Nodes `lost` are not kept.
  """
  solve = lambda price: cheapest(graph, price, absorbed, (), lost)
  least, most = solve(Fraction(0)), solve(None)

  def between(a: Cut, b: Cut) -> list[Cut]:
    if a.flops_per_token <= b.flops_per_token or size(b) <= size(a):
      return []
    price = price_between(a, b)
    middle = solve(price)
    cost = lambda c: size(c) + LENGTH * price * Fraction(c.flops_per_token)
    if cost(middle) >= cost(a):
      return []
    return [*between(a, middle), middle, *between(middle, b)]

  if (
    size(most) == size(least) and most.flops_per_token == least.flops_per_token
  ):
    return [most]
  return [least, *between(least, most), most]


def price_between(small: Cut, quick: Cut) -> Fraction:
  """The price, in bytes a FLOP, at which two cuts cost the same."""
  saved = Fraction(small.flops_per_token) - Fraction(quick.flops_per_token)
  return Fraction(size(quick) - size(small)) / saved / LENGTH


def bytes_of(node: Node) -> int:
  """Bytes of one tensor in a cache of `LENGTH` tokens."""
  return round(LENGTH * node.bytes_per_token) + node.state_bytes


def size(cut: Cut) -> int:
  """Bytes of a cache of `LENGTH` tokens."""
  return round(LENGTH * cut.bytes_per_token) + cut.state_bytes
