"""Minimum s-t cut by shortest augmenting paths, on exact integers.

Edmonds and Karp (1972), "Theoretical improvements in algorithmic efficiency
for network flow problems". Graphs here have two nodes for a tensor.
"""

import collections
from collections.abc import Hashable, Iterable

INFINITE = 1 << 200  # Above any sum of prices; Python integers do not overflow.


Edge = tuple[Hashable, Hashable, int]
Rooms = dict[Hashable, dict[Hashable, int]]


def source_side(
  edges: Iterable[Edge], source: Hashable, sink: Hashable
) -> set[Hashable]:
  """Returns the nodes on the source's side of a minimum cut.

  Of several minimum cuts it is the one nearest the source, for any flow.
  """
  # What may still flow from node to node; what flows may also flow back.
  room: Rooms = collections.defaultdict(lambda: collections.defaultdict(int))
  for tail, head, capacity in edges:
    room[tail][head] += capacity
    room[head][tail] += 0
  before = _search(room, source)
  while sink in before:
    path = []
    node = sink
    while node != source:
      path.append((before[node], node))
      node = before[node]
    flow = min(room[tail][head] for tail, head in path)
    for tail, head in path:
      room[tail][head] -= flow
      room[head][tail] += flow
    before = _search(room, source)
  return set(before)


def _search(room: Rooms, source: Hashable) -> dict[Hashable, Hashable]:
  """Returns for nodes within reach the node before on a shortest path."""
  before = {source: source}
  queue = collections.deque([source])
  while queue:
    tail = queue.popleft()
    for head, capacity in room[tail].items():
      if capacity and head not in before:
        before[head] = tail
        queue.append(head)
  return before
