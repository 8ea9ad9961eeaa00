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
    test: pytest id of the test (or class) that must notice.
  """

  name: str
  path: str
  old: str
  new: str
  test: str

  @property
  def row(self) -> str:
    """A row of docs/dev/mutants.md."""
    # A cell of a table is one line.
    old, new = (
      ' '.join(text.split()).replace('|', '\\|')
      for text in (self.old, self.new)
    )
    return f'| {self.name} | {self.path} | `{old}` | `{new}` |'

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
