"""The public report of an analysis."""

import dataclasses
import math

from kvjax.display import Display, Displayed

Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Point:
  """One way to remember: what is kept and what redoing the rest costs.

  Attributes:
    names: tensors that are kept.
    bytes_per_token: what one more token adds; a fraction with blocks.
    flops_per_token: a past token and step, at the length analysed.
    state_bytes: of states, which do not grow with the sequence.
    rewrites: algebra that was used: absorption.
  """

  names: tuple[str, ...]
  bytes_per_token: float
  flops_per_token: float
  state_bytes: int = 0
  rewrites: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of a report.

  Attributes:
    name: its name in the program.
    shape: of what one token adds.
    available: when the tensor can be computed.
    live_for: later tokens that read it.
    bytes_per_token: what one more token adds.
    kept: whether it is one of the report's `keep`.
    why: it is kept or not.
    spans: for each row, the positions that make it and that read it last.
  """

  name: str
  shape: tuple[int, ...]
  available: str
  live_for: float
  bytes_per_token: float
  kept: bool
  why: str
  spans: Spans = ()


@dataclasses.dataclass(frozen=True)
class Dataflow:
  """The past of a program as a graph.

  Attributes:
    nodes: a label and a side each: kept, redone, past or future.
    edges: pairs of indices of nodes, from an operand to its reader.
  """

  nodes: tuple[tuple[str, str], ...]
  edges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, repr=False)
class LivenessReport(Displayed):
  """What an uncached program must remember.

  Attributes:
    causal: no past row of the output changes when later tokens come.
    live_for: tokens by name: a tensor of 0 is read with its token only, one of
      n by the next n tokens, one of `math.inf` by every later token.
    keep: names that the future reads, if nothing is computed again.
    frontier: ways to remember, from fewest bytes to least recomputation.
    delay: tokens that a row waits for after its own; inf if it is never final.
    static: named tensors that read no token.
    tensors: a row for each named tensor.
    graph: of the tensors, for a picture.
    notes: what else the analysis found.
  """

  causal: bool
  live_for: dict[str, float]
  keep: tuple[str, ...]
  frontier: tuple[Point, ...]
  delay: float = 0
  static: tuple[str, ...] = ()
  tensors: tuple[Row, ...] = ()
  graph: Dataflow = Dataflow((), ())
  notes: tuple[str, ...] = ()

  @property
  def bytes_per_token(self) -> float:
    """Returns bytes that one more token adds at zero recomputation."""
    return self.frontier[-1].bytes_per_token if self.frontier else 0

  def within(self, flops: float) -> tuple[Point, ...]:
    """Returns the frontier's points within a budget, fewest bytes first.

    The points are the corners of the frontier, so the first is the cheapest
    corner that fits. A cut between two corners may be smaller and fit as well.

    Args:
      flops: the most to redo, a past token and step, at the length analysed.
        0 gives what the future reads, `math.inf` the fewest bytes of all: token
        ids, for a program that embeds them.

    Raises:
      ValueError: every point redoes more.
    """
    points = [p for p in self.frontier if p.flops_per_token <= flops]
    if not points:
      least = min((p.flops_per_token for p in self.frontier), default=None)
      raise ValueError(
        f'flops={flops} is too small a budget: the least is {least}.'
      )
    key = lambda p: (p.bytes_per_token, p.state_bytes, p.flops_per_token)
    return tuple(sorted(points, key=key))

  def fastest(self, bandwidth: float, flop_rate: float) -> Point:
    """Returns the point that costs least time a past token on a device.

    Args:
      bandwidth: bytes a second.
      flop_rate: FLOPs a second.
    """
    return min(
      self.frontier,
      key=lambda p: (
        p.bytes_per_token / bandwidth + p.flops_per_token / flop_rate
      ),
    )

  def display(self) -> Display:
    rows = [
      [
        row.name,
        str(row.shape),
        _tokens(row.live_for),
        f'{row.bytes_per_token:,}',
        f'{"KEPT: " if row.kept else ""}{row.why}',
      ]
      for row in self.tensors
    ]
    points = [
      f'keep {" + ".join(point.names) or "nothing"}: '
      f'{point.bytes_per_token:,} B and {point.flops_per_token:,.0f} FLOP a '
      f'token{" by " + ", ".join(point.rewrites) if point.rewrites else ""}'
      for point in self.frontier
    ]
    return Display(
      f'Keep {" and ".join(self.keep) or "nothing"}: '
      f'{self.bytes_per_token:,} bytes a token',
      ('tensor', 'a token', 'live for', 'bytes', 'why'),
      rows,
      left=('tensor', 'why'),
      notes=(*points, *self.notes),
    )


def _tokens(count: float) -> str:
  return 'all later' if math.isinf(count) else str(int(count))
