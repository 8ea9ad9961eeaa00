"""The result of an analysis at one length."""

import dataclasses
import functools
import math
from typing import Any

from kvjax.liveness.cut.absorption import Absorption, find_absorption
from kvjax.liveness.cut.lifetimes import Boundary
from kvjax.liveness.cut.min_cut import Cut, Graph
from kvjax.liveness.cut.nodes import Extent
from kvjax.liveness.program.trace import Trace
from kvjax.liveness.report import Spans


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What a program must remember at one length, and how that was derived."""

  trace: Trace
  boundary: Boundary
  whole: Graph  # all of the past
  graph: Graph  # the past without what only streams and states are made of
  cut: Cut  # of `graph`, at zero recomputation
  names: tuple[str, ...]  # of the nodes of `graph`
  live_for: dict[str, float]
  spans: dict[str, Spans]
  delay: float  # the most positions an output row waits for after its position
  usual_delay: int  # and those a row far from the beginning waits for

  @functools.cached_property
  def absorption(self) -> Absorption:
    """Returns which products of the past need not be formed."""
    return find_absorption(self.trace, self.boundary, self.whole)

  def summary(self) -> tuple[Any, ...]:
    """Returns what must not depend on the length."""
    if math.isinf(self.delay):
      return (self.delay,)
    nodes = [self.graph.nodes[i] for i in self.cut.kept]
    kept = sorted(
      (n.width, n.extent is Extent.STATE, n.unbounded, n.gap) for n in nodes
    )
    return kept, self.live_for, self.delay, self.usual_delay
