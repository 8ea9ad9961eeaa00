"""Lines of a plan: bytes with their formula, in symbols and in numbers."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from kvjax.memory.parts.sharding import WHOLE, Shards


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of a plan.

  Attributes:
    part: 'params', 'cache', 'step' (alive when a step is fullest), 'in logits'
      (alive then too, in memory that the logits will need), 'encode' (alive
      when the reading of a source is fullest), 'another moment' (of either),
      'sampling', or 'never' for what nobody would read.
    name: what it is.
    bytes: integer, exact; of one device.
    symbols: its formula.
    numbers: the formula with numbers put in.
  """

  part: str
  name: str
  bytes: int
  symbols: str
  numbers: str


@dataclasses.dataclass(frozen=True)
class Dim:
  """One factor of a size: a letter of `kvjax`'s legend and what it stands for.

  `axis` is the named axis that a mesh may split; '' for none.
  """

  letter: str
  size: int
  axis: str = ''


@dataclasses.dataclass(frozen=True)
class Term:
  """Bytes of some arrays of one shape."""

  name: str
  dims: tuple[Dim, ...]
  itemsize: int
  times: int = 1

  def bytes(self, shards: Shards = WHOLE) -> int:
    """Returns the bytes of one device."""
    count = self.times * self.itemsize
    for dim in self.dims:
      count *= dim.size // shards.parts(dim.axis, dim.size)
    return count

  def line(self, part: str, shards: Shards = WHOLE) -> Line:
    """Returns this term as a line of a plan."""
    times = [] if self.times == 1 else [str(self.times)]
    sizes = [str(d.size // shards.parts(d.axis, d.size)) for d in self.dims]
    letters = [d.letter for d in self.dims]
    return Line(
      part,
      self.name,
      self.bytes(shards),
      ' '.join([*times, *letters, 'bytes']),
      ' x '.join([*times, *sizes, str(self.itemsize)]),
    )


def sum_bytes(terms: Iterable[Term], shards: Shards = WHOLE) -> int:
  """Returns the bytes of some terms on one device."""
  return sum(term.bytes(shards) for term in terms)


def merge_terms(terms: Iterable[Term]) -> list[Term]:
  """Returns equal terms as one of several times."""
  times = collections.Counter[Term]()
  for term in terms:
    times[dataclasses.replace(term, times=1)] += term.times
  return [dataclasses.replace(x, times=n) for x, n in times.items() if n]


def fullest_lines(
  moments: Sequence[list[Term]], part: str, shards: Shards = WHOLE
) -> Iterator[Line]:
  """Yields the fullest moment as a part, and what is alive only at others."""
  fullest = max(moments, key=lambda terms: sum_bytes(terms, shards))
  names = set()
  for term in fullest:
    names.add(term.name)
    yield term.line(part, shards)
  for term in [term for terms in moments for term in terms]:
    if term.name not in names:
      names.add(term.name)
      yield term.line('another moment', shards)
