"""What a run of random operations has done, in numbers."""

import collections
import dataclasses


@dataclasses.dataclass
class Tally:
  """What has been run, and the worst difference seen."""

  examples: int = 0
  first_failure: int = 0
  operations: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  refusals: int = 0
  compared: int = 0
  unclear: int = 0
  worst: float = 0.0

  def add(self, other: 'Tally') -> None:
    for field in dataclasses.fields(self):
      if field.name not in ('worst', 'first_failure'):
        value = getattr(self, field.name) + getattr(other, field.name)
        setattr(self, field.name, value)
    self.worst = max(self.worst, other.worst)

  def __str__(self) -> str:
    steps = sum(self.operations.values())
    return (
      f'{self.examples} examples, {steps} steps ({self.refusals} refused), '
      f'{self.compared} rows compared ({self.unclear} near a tie), worst '
      f'relative difference {self.worst:.1e}'
    )
