"""What an analysis says."""

import dataclasses
import math

Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Point:
  """One way to remember: what is kept and what redoing the rest costs."""

  names: tuple[str, ...]
  bytes_per_token: float  # what one more token adds; whole but for blocks
  flops_per_token: float  # a past token and step, at the length analysed
  state_bytes: int = 0  # what a carry occupies, however long the sequence
  rewrites: tuple[str, ...] = ()  # algebra used: absorption


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor, for people."""

  name: str
  shape: tuple[int, ...]  # a token
  available: str
  live_for: float
  bytes_per_token: float
  kept: bool
  why: str
  spans: Spans = ()  # of each row: the position it is made at, and last read


@dataclasses.dataclass(frozen=True)
class Dataflow:
  """The past as a graph; `side` is kept, redone, past or future."""

  nodes: tuple[tuple[str, str], ...]  # label, side
  edges: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class LivenessReport:
  """What an uncached program must remember.

  `live_for` counts tokens: 0 dies with its own, n is read by the next n,
  `math.inf` by every later one.
  """

  causal: bool
  live_for: dict[str, float]
  keep: tuple[str, ...]
  frontier: tuple[Point, ...]
  equals: tuple[Point, ...] = ()  # as small as the last, and redoing more
  delay: float = 0  # tokens a row waits for after its own; inf: never final
  static: tuple[str, ...] = ()  # named tensors that read no token
  tensors: tuple[Row, ...] = ()
  graph: Dataflow = Dataflow((), ())
  frontier_complete: bool = True  # False: corners of its hull alone
  notes: tuple[str, ...] = ()

  @property
  def bytes_per_token(self) -> float:
    """Bytes that one more token adds at zero recomputation."""
    return self.frontier[-1].bytes_per_token if self.frontier else 0

  def within(self, flops: float) -> tuple[Point, ...]:
    """Returns the points that redo at most so much, least bytes first.

    At 0 they keep what the future reads; a rotation's worth admits keys before
    their rotation, a projection's worth the activations where those are
    smaller, and `math.inf` the input itself: token ids.

    Args:
      flops: a past token and step, at the length analysed.

    Raises:
      ValueError: no point redoes so little.
    """
    points = self.frontier + self.equals
    found = [p for p in points if p.flops_per_token <= flops]
    if not found:
      least = min((p.flops_per_token for p in points), default=None)
      raise ValueError(
        f'flops={flops} is too small a budget: the least is {least}.'
      )
    key = lambda p: (p.bytes_per_token, p.state_bytes, p.flops_per_token)
    return tuple(sorted(found, key=key))

  def fastest(self, bandwidth: float, flop_rate: float) -> Point:
    """The point that costs least time a past token and step on a device.

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

  def __str__(self) -> str:
    head = f'{"tensor":16} {"a token":>14} {"live for":>9} {"bytes":>7}  why\n'
    body = ''.join(
      f'{r.name:16} {str(r.shape):>14} {_tokens(r.live_for):>9} '
      f'{r.bytes_per_token:>7}  {"KEPT: " if r.kept else ""}{r.why}\n'
      for r in self.tensors
    )
    points = ''.join(
      f'keep {" + ".join(p.names) or "nothing"}: {p.bytes_per_token:,} B and '
      f'{p.flops_per_token:,.0f} FLOP a token'
      f'{" by " + ", ".join(p.rewrites) if p.rewrites else ""}\n'
      for p in self.frontier
    )
    return head + body + points + ''.join(f'{n}\n' for n in self.notes)


def _tokens(count: float) -> str:
  return 'all later' if math.isinf(count) else str(int(count))
