"""Cuts that no price finds: optimal under a budget of recomputed FLOPs.

A price finds the corners of the front's convex hull. Between two corners lie
cuts that are smaller than one and redo less than the other; they are
enumerated in the order of their cost at the corners' common price (Lawler
1972, "A procedure for computing the K best solutions to discrete optimization
problems"), until none can lie in the triangle between the two.
"""

import collections
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

from kvjax.liveness import cut as cutting

Cut = cutting.Cut
Prices = dict[int, float]
NONE: frozenset[int] = frozenset()


def front(
    graph: cutting.Graph,
    absorbed: Prices,
    solves: int,
    lost: frozenset[int] = NONE,
) -> list[Cut]:
  """Returns the Pareto front of bytes and FLOPs, least bytes first.

  At most so many minimum cuts are solved between corners; beyond that, cuts
  off the hull may be missing. None that is there is beaten by another. Nodes
  `lost` are not kept.
  """
  corners = cutting.frontier(graph, absorbed, lost)
  found = []
  left = iter(range(solves))
  for pair in itertools.pairwise(corners):
    found += _between(graph, absorbed, *pair, left, lost)
  parts = _parts(graph)
  whole = [c for c in found if not _splits(c, parts)]
  return [c for c in pareto(corners + whole) if not lost & set(c.kept)]


def pareto(cuts: Iterable[Cut]) -> list[Cut]:
  """Those that none beats in bytes and FLOPs, least bytes first."""
  out: list[Cut] = []
  for cut in sorted(cuts, key=lambda c: (cutting.size(c), c.flops_per_token)):
    if not out or cut.flops_per_token < out[-1].flops_per_token:
      out.append(cut)
  return out


def _parts(graph: cutting.Graph) -> list[set[int]]:
  """Nodes that are parts of one named tensor: halves of a rotated key."""
  found = collections.defaultdict(set)
  for i, node in enumerate(graph.nodes):
    if node.names:
      found[node.names, node.readers].add(i)
  return [part for part in found.values() if len(part) > 1]


def _splits(cut: Cut, parts: Sequence[set[int]]) -> bool:
  kept, redone = set(cut.kept), set(cut.redone)
  return any(part & kept and part & redone for part in parts)


def _between(
    graph: cutting.Graph,
    absorbed: Prices,
    small: Cut,
    quick: Cut,
    left: Iterator[int],
    gone: frozenset[int],
) -> list[Cut]:
  """Cuts smaller than `quick` that redo less than `small`."""
  price = cutting.price_between(small, quick)
  cost = lambda size, flops: size + cutting.LENGTH * price * Fraction(flops)
  bound = cost(cutting.size(quick), small.flops_per_token)
  number = itertools.count()
  queue: list[tuple] = []

  def push(held: frozenset[int], lost: frozenset[int]) -> None:
    cut = _solve(graph, price, absorbed, held, lost)
    if cut is not None:
      value = cost(cutting.size(cut), cut.flops_per_token)
      if value < bound:
        heapq.heappush(queue, (value, next(number), cut, held, lost))

  push(NONE, gone)
  found = []
  while queue:
    _, _, cut, held, lost = heapq.heappop(queue)
    found.append(cut)
    for held_, lost_ in _others(cut, held, lost):
      if next(left, None) is None:
        return found
      push(held_, lost_)
  return found


def _others(
    cut: Cut, held: frozenset[int], lost: frozenset[int]
) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
  """Splits all cuts but this one: without what it keeps, or keeping more."""
  for i in sorted(set(cut.kept) - held):
    yield held, lost | {i}
    held = held | {i}
  for i in sorted(set(cut.redone) - lost):
    yield held | {i}, lost
    lost = lost | {i}


def _solve(
    graph: cutting.Graph,
    price: Fraction,
    absorbed: Prices,
    held: frozenset[int],
    lost: frozenset[int],
) -> Cut | None:
  cut = cutting.cheapest(graph, price, absorbed, held, lost)
  kept = set(cut.kept)
  possible = held <= kept and not lost & kept
  given = any(graph.nodes[i].maker < 0 for i in cut.redone)
  return cut if possible and not given else None
