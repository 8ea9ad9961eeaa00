"""Minimum s-t cut by shortest augmenting paths, on exact integers.

Edmonds and Karp (1972), "Theoretical improvements in algorithmic efficiency
for network flow problems". Graphs here have two nodes for a tensor.
"""

import collections
from collections.abc import Hashable, Iterable

INFINITE = 1 << 200  # Above any sum of prices; Python integers do not overflow.


class _Network:
  """Residual arcs in pairs: the reverse of arc a is arc a ^ 1."""

  def __init__(self, edges: Iterable[tuple[Hashable, Hashable, int]]) -> None:
    self.head: list[Hashable] = []
    self.room: list[int] = []
    self.arcs: dict[Hashable, list[int]] = collections.defaultdict(list)
    for tail, head, capacity in edges:
      for a, b, room in ((tail, head, capacity), (head, tail, 0)):
        self.arcs[a].append(len(self.head))
        self.head.append(b)
        self.room.append(room)

  def reach(self, source: Hashable) -> dict[Hashable, int]:
    """Returns for nodes within reach the last arc of a shortest path."""
    last_arc = {source: -1}
    queue = collections.deque([source])
    while queue:
      for arc in self.arcs[queue.popleft()]:
        head = self.head[arc]
        if self.room[arc] and head not in last_arc:
          last_arc[head] = arc
          queue.append(head)
    return last_arc

  def augment(self, source: Hashable, sink: Hashable) -> bool:
    """Fills one shortest path; returns False when there is none."""
    last_arc = self.reach(source)
    if sink not in last_arc:
      return False
    path = []
    node = sink
    while node != source:
      path.append(last_arc[node])
      node = self.head[path[-1] ^ 1]
    flow = min(self.room[arc] for arc in path)
    for arc in path:
      self.room[arc] -= flow
      self.room[arc ^ 1] += flow
    return True


def source_side(
  edges: Iterable[tuple[Hashable, Hashable, int]],
  source: Hashable,
  sink: Hashable,
) -> set[Hashable]:
  """Returns the nodes on the source's side of a minimum cut.

  Of several minimum cuts it is the one nearest the source, for any flow.
  """
  network = _Network(edges)
  while network.augment(source, sink):
    pass
  return set(network.reach(source))
