"""Lines of a plan: bytes with their formula, in symbols and in numbers."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from kvjax.mesh.rules import WHOLE, Partition


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

  def bytes(self, partition: Partition = WHOLE) -> int:
    """Returns the bytes of one device."""
    return self.times * self.itemsize * math.prod(self._sizes(partition))

  def _sizes(self, partition: Partition) -> list[int]:
    names, sizes = [d.axis for d in self.dims], [d.size for d in self.dims]
    return partition.local_shape(names, sizes)

  def line(self, part: str, partition: Partition = WHOLE) -> Line:
    """Returns this term as a line of a plan."""
    times = [] if self.times == 1 else [str(self.times)]
    sizes = map(str, self._sizes(partition))
    letters = [d.letter for d in self.dims]
    return Line(
      part,
      self.name,
      self.bytes(partition),
      ' '.join([*times, *letters, 'bytes']),
      ' x '.join([*times, *sizes, str(self.itemsize)]),
    )


def sum_bytes(terms: Iterable[Term], partition: Partition = WHOLE) -> int:
  """Returns the bytes of some terms on one device."""
  return sum(term.bytes(partition) for term in terms)


def merge_terms(terms: Iterable[Term]) -> list[Term]:
  """Returns equal terms as one of several times."""
  times = collections.Counter[Term]()
  for term in terms:
    times[dataclasses.replace(term, times=1)] += term.times
  return [dataclasses.replace(x, times=n) for x, n in times.items() if n]


def fullest_lines(
  moments: Sequence[list[Term]], part: str, partition: Partition = WHOLE
) -> Iterator[Line]:
  """Yields the fullest moment as a part, and what is alive only at others."""
  fullest = max(moments, key=lambda terms: sum_bytes(terms, partition))
  names = set()
  for term in fullest:
    names.add(term.name)
    yield term.line(part, partition)
  for term in [term for terms in moments for term in terms]:
    if term.name not in names:
      names.add(term.name)
      yield term.line('another moment', partition)
