"""Minimum s-t cut by Dinic's algorithm, on exact integers.

Dinitz (1970), "Algorithm for solution of a problem of maximum flow in a
network with power estimation". Graphs here have two nodes for a tensor.
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
      for a, b, c in ((tail, head, capacity), (head, tail, 0)):
        self.arcs[a].append(len(self.head))
        self.head.append(b)
        self.room.append(c)

  def levels(self, source: Hashable) -> dict[Hashable, int]:
    """Returns the distance of every node within reach, in arcs with room."""
    level = {source: 0}
    queue = collections.deque([source])
    while queue:
      node = queue.popleft()
      for arc in self.arcs[node]:
        if self.room[arc] and self.head[arc] not in level:
          level[self.head[arc]] = level[node] + 1
          queue.append(self.head[arc])
    return level

  def augment(self, source: Hashable, sink: Hashable) -> bool:
    """Saturates one level graph; False when the sink is out of reach."""
    level = self.levels(source)
    if sink not in level:
      return False
    todo = {node: list(self.arcs[node]) for node in level}
    path: list[int] = []
    node = source
    while True:
      if node == sink:
        flow = min(self.room[arc] for arc in path)
        for arc in path:
          self.room[arc] -= flow
          self.room[arc ^ 1] += flow
        path = []
        node = source
      elif todo[node]:
        arc = todo[node][-1]
        head = self.head[arc]
        if self.room[arc] and level.get(head) == level[node] + 1:
          path.append(arc)
          node = head
        else:
          todo[node].pop()
      elif path:
        node = self.head[path.pop() ^ 1]
        todo[node].pop()
      else:
        return True


def source_side(
  edges: Iterable[tuple[Hashable, Hashable, int]],
  source: Hashable,
  sink: Hashable,
) -> set[Hashable]:
  """Returns the nodes on the source's side of a minimum cut."""
  network = _Network(edges)
  while network.augment(source, sink):
    pass
  return set(network.levels(source))
