"""The whole front of bytes and FLOPs, off the hull that prices find too.

A price finds the corners of the front's convex hull. Between two corners lie
cuts that are smaller than one and redo less than the other: optima under a
budget of FLOPs. All of them are found by eliminating one tensor after the
other (Bertele and Brioschi 1972, "Nonserial Dynamic Programming"): tensors are
decided in the order in which they are made, a state says what of the decided
is there for those to come, and holds the front of the ways to get there. A
stack of layers hands on its residual stream and little else, so states stay
few, and the ways of identical layers come to the same sums.
"""

import bisect
import collections
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvjax.liveness.cut import min_cut

Cut = min_cut.Cut
Prices = dict[int, float]
NONE: frozenset[int] = frozenset()
LIMIT = 25_000  # Ways held at a time; beyond it only corners are known.
_ABSENT, _KEPT, _REDONE = range(3)


class Way(NamedTuple):
  """Decisions so far: what they cost, and which tensors are kept."""

  size: int
  flops: float
  tie: int
  kept: int  # bits, by node


State = tuple[int, ...]  # a label for every open node
Ways = dict[State, list[Way]]


def front(graph: min_cut.Graph, absorbed: Prices) -> tuple[list[Cut], bool]:
  """Returns the Pareto front of bytes and FLOPs, and whether it is whole.

  The front is in the order of its bytes. It is the corners of its hull alone
  where there are too many ways to hold. Cuts off the hull part no named tensor.
  """
  corners = min_cut.frontier(graph, absorbed)
  ways = _Elimination(graph, absorbed, NONE, corners).run()
  cuts = [min_cut.closed(graph, _bits(w.kept), absorbed) for w in ways or ()]
  return pareto(corners + cuts), ways is not None


def quickest(
  graph: min_cut.Graph, absorbed: Prices, lost: frozenset[int], most: int
) -> Cut | None:
  """Returns the cut of `most` bytes or fewer without `lost` that redoes least.

  Of the hull's corners where there are too many ways to hold; None where no
  cut is so small.
  """
  corners = min_cut.frontier(graph, absorbed, lost)
  corners = [c for c in corners if not lost & set(c.kept)]
  found = [c for c in corners if min_cut.size(c) <= most]
  ceiling = min((c.flops_per_token for c in found), default=math.inf)
  ways = _Elimination(graph, absorbed, lost, corners, most, ceiling).run()
  found += [min_cut.closed(graph, _bits(w.kept), absorbed) for w in ways or ()]
  return pareto(found)[-1] if found else None


def pareto(cuts: Iterable[Cut]) -> list[Cut]:
  """Those that none beats in bytes and FLOPs, least bytes first."""
  out: list[Cut] = []
  for cut in sorted(cuts, key=lambda c: (min_cut.size(c), c.flops_per_token)):
    if not out or cut.flops_per_token < out[-1].flops_per_token:
      out.append(cut)
  return out


class _Elimination:
  """Decides the nodes of a graph one by one."""

  def __init__(
    self,
    graph: min_cut.Graph,
    absorbed: Prices,
    lost: frozenset[int],
    corners: Sequence[Cut],
    most: float = math.inf,
    ceiling: float = math.inf,
  ) -> None:
    self.graph = graph
    self.most, self.ceiling = most, ceiling  # of bytes, and of FLOPs
    self.corners = pareto(corners)
    self.sizes = [min_cut.size(c) for c in self.corners]
    self.flops = {
      i: absorbed.get(i, node.flops) for i, node in enumerate(graph.nodes)
    }
    self.made_of: dict[int, set[int]] = {i: set() for i in self.flops}
    self.readers: dict[int, set[int]] = {i: set() for i in self.flops}
    for a, b in graph.edges:
      self.made_of[b].add(a)
      self.readers[a].add(b)
    self.parts = _parts(graph)
    bands = {i for i, node in enumerate(graph.nodes) if node.band}
    self.never = bands | lost
    self.never |= {i for i in self.flops if self.outdone(i)}
    for i in sorted(self.never):
      self.join(i)

  def outdone(self, i: int) -> bool:
    """Whether its one reader, which is no larger, is better kept."""
    if i in self.graph.future or len(self.readers[i]) != 1:
      return False
    (reader,) = self.readers[i]
    cost = lambda j, flops: (
      min_cut.bytes_of(self.graph.nodes[j]),
      flops,
      min_cut.tie(self.graph, j),
    )
    better = cost(reader, 0.0) <= cost(i, self.flops[reader])
    return better and reader not in self.never

  def join(self, i: int) -> None:
    """What is never kept is redone with its one reader: they are one node."""
    fixed = i in self.graph.future or i in self.parts or self.given(i)
    if fixed or len(self.readers[i]) != 1 or self.readers[i] & self.made_of[i]:
      return
    (reader,) = self.readers[i]
    self.flops[reader] += self.flops.pop(i)
    self.made_of[reader] = self.made_of[reader] - {i} | self.made_of[i]
    for a in self.made_of.pop(i):
      self.readers[a] = self.readers[a] - {i} | {reader}
    del self.readers[i]

  def given(self, i: int) -> bool:
    return self.graph.nodes[i].maker < 0 or self.graph.nodes[i].held

  def run(self) -> list[Way] | None:
    """Ways that none beats; None where there are too many to hold."""
    ways: Ways = {(): [Way(0, 0.0, 0, 0)]}
    open_: list[int] = []
    done: set[int] = set()
    for i in self.order():
      done.add(i)
      still = [j for j in (*open_, i) if self.near(j) - done]
      found: dict[State, list[Way]] = collections.defaultdict(list)
      for state, held in ways.items():
        labels = dict(zip(open_, state, strict=True))
        for label in self.possible(i, labels):
          after = labels | {i: label}
          key = tuple(self.seen(j, after[j], done) for j in still)
          found[key] += self.decided(held, i, label)
      ways = {state: self.best(found[state]) for state in found}
      open_ = still
      if sum(map(len, ways.values())) > LIMIT:
        return None
    return ways.get((), [])

  def order(self) -> list[int]:
    """Nodes after what they are made of, so that few are open at a time.

    The next is the one that closes most; of several one made of the latest.
    States are made of each other: where such are left, the first goes on.
    """
    left = set(self.flops)
    when: dict[int, int] = {}

    def rank(i: int) -> tuple[int, int, int]:
      closes = sum(self.readers[a] & left == {i} for a in self.made_of[i])
      latest = max((when.get(a, -1) for a in self.made_of[i]), default=-1)
      return closes - bool(self.readers[i] & left), latest, -i

    while left:
      ready = [i for i in left if not self.made_of[i] & left]
      i = max(ready or [min(left)], key=rank)
      left.remove(i)
      when[i] = len(when)
    return list(when)

  def near(self, i: int) -> set[int]:
    return self.made_of[i] | self.readers[i] | self.parts.get(i, NONE)

  def possible(self, i: int, labels: dict[int, int]) -> list[int]:
    """What may become of a node, given those decided before it."""
    out = [_ABSENT, _KEPT, _REDONE]
    wanted = any(labels.get(j) == _REDONE for j in self.readers[i])
    if wanted or i in self.graph.future:
      out.remove(_ABSENT)
    beside = {labels.get(j) for j in self.parts.get(i, NONE)}
    if i in self.never or _REDONE in beside:
      out.remove(_KEPT)
    missing = any(labels.get(j) == _ABSENT for j in self.made_of[i])
    if self.given(i) or missing or _KEPT in beside:
      out.remove(_REDONE)
    return out

  def seen(self, i: int, label: int, done: set[int]) -> int:
    """The label as far as nodes to come can tell: kept is as good as redone."""
    told = (self.parts.get(i, NONE) | self.made_of[i]) - done
    return label if told or label == _ABSENT else _KEPT

  def decided(self, ways: list[Way], i: int, label: int) -> list[Way]:
    """The ways with one more decision: nothing, bytes or FLOPs more each."""
    if label == _KEPT:
      more = min_cut.bytes_of(self.graph.nodes[i])
      tie, bit = min_cut.tie(self.graph, i), 1 << i
      return [Way(s + more, f, t + tie, k | bit) for s, f, t, k in ways]
    if label == _REDONE:
      more = self.flops[i]
      return [Way(s, f + more, t, k) for s, f, t, k in ways]
    return ways

  def best(self, ways: list[Way]) -> list[Way]:
    """Those that no other of the state, and no corner, beats."""
    out: list[Way] = []
    least = self.ceiling
    for way in sorted(ways):
      size, flops, *_ = way
      if flops < least and size <= self.most:
        corner = bisect.bisect_right(self.sizes, size) - 1
        if corner < 0 or flops < self.corners[corner].flops_per_token:
          least = flops
          out.append(way)
    return out


def _parts(graph: min_cut.Graph) -> dict[int, set[int]]:
  """For parts of one named tensor, halves of a rotated key, the others.

  They are kept together or not at all.
  """
  found = collections.defaultdict(set)
  for i, node in enumerate(graph.nodes):
    if node.names:
      found[node.names, node.readers].add(i)
  parts = [part for part in found.values() if len(part) > 1]
  return {i: part - {i} for part in parts for i in part}


def _bits(kept: int) -> set[int]:
  return {i for i in range(kept.bit_length()) if kept >> i & 1}
