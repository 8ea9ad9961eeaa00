"""The public report of an analysis."""

import dataclasses
import math

from kvjax.display import Display, Displayed

Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Point:
  """One way to remember: what is kept and what redoing the rest costs."""

  names: tuple[str, ...]
  bytes_per_token: float  # what one more token adds; a fraction with blocks
  flops_per_token: float  # a past token and step, at the length analysed
  state_bytes: int = 0  # of states, which do not grow with the sequence
  rewrites: tuple[str, ...] = ()  # algebra used: absorption


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor, for people."""

  name: str
  shape: tuple[int, ...]  # of what one token adds
  available: str
  live_for: float
  bytes_per_token: float
  kept: bool
  why: str
  spans: Spans = ()  # for each row: the positions that make it and read it last


@dataclasses.dataclass(frozen=True)
class Dataflow:
  """The past as a graph; `side` is kept, redone, past or future."""

  nodes: tuple[tuple[str, str], ...]  # label, side
  edges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, repr=False)
class LivenessReport(Displayed):
  """What an uncached program must remember.

  `live_for` counts tokens: a tensor of 0 is read with its token only, one of n
  by the next n tokens, one of `math.inf` by every later token.
  """

  causal: bool
  live_for: dict[str, float]
  keep: tuple[str, ...]
  frontier: tuple[Point, ...]
  delay: float = 0  # tokens a row waits for after its token; inf: never final
  static: tuple[str, ...] = ()  # named tensors that read no token
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
