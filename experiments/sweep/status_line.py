"""What a sweep shows of the running point: its time and the end of its log."""

import contextlib
import sys
from collections.abc import Iterator

from experiments.reporting.blocks import without_controls
from experiments.sweep.grid import Watch
from kvjax.progress_bar import can_show

EVERY = 60  # seconds between two lines where no line can be overwritten


@contextlib.contextmanager
def show_status() -> Iterator[Watch]:
  """Yields a function that shows on stderr how far a point is.

  On a terminal it overwrites one line, elsewhere it prints a line a minute.
  """
  if not can_show():
    yield _printing()
    return
  from rich.console import Console
  from rich.text import Text

  with Console(stderr=True).status('') as status:
    yield lambda seconds, line: status.update(
      Text(_state(seconds, line), no_wrap=True)
    )


def _printing() -> Watch:
  due = EVERY

  def say(seconds: float, line: str) -> None:
    nonlocal due
    if seconds >= due:
      due += EVERY
      print(f'  {_state(seconds, line)}', file=sys.stderr, flush=True)

  return say


def _state(seconds: float, line: str) -> str:
  return f'{seconds:.0f} s  {without_controls(line)}'.rstrip()
