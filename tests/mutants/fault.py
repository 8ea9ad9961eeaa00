"""One fault: a line of the package, what replaces it, and who should notice."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One fault.

  `old` stands exactly once in its file (a test asks), so that the table cannot
  outlive the code it is about.

  Attributes:
    name: what is wrong.
    path: file, from the root of the repository.
    old: text of the line that is replaced.
    new: what replaces it.
    tests: pytest ids of the tests most likely to notice.
  """

  name: str
  path: str
  old: str
  new: str
  tests: tuple[str, ...]

  def apply(self, text: str) -> str:
    """Returns the file with the fault.

    Raises:
      ValueError: `old` is not there exactly once.
    """
    count = text.count(self.old)
    if count != 1:
      raise ValueError(
        f'{self.name}: {self.old!r} stands {count} times in {self.path}; a '
        'fault must match once. Change its text in tests/mutants/.'
      )
    return text.replace(self.old, self.new)


def faults(path: str, tests: str, *rows: tuple[str, ...]) -> tuple:
  """Returns faults of one file; a row may name other tests, fourth."""
  return tuple(
    Mutant(
      row[0],
      f'kvjax/{path}.py',
      row[1],
      row[2],
      tuple(f'tests/{t}' for t in (row[3:] or (tests,))),
    )
    for row in rows
  )
