"""A progress bar on a terminal and in a notebook, by rich where it is there."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress(
  label: str, total: float | None, *, in_bytes: bool = False
) -> Iterator[Callable[[float], None]]:
  """Shows a bar while the block runs; yields a function of the work done.

  Nothing is imported or shown where nobody sees a bar (`can_show`).

  Args:
    label: of the bar.
    total: of the work; None for a bar that only says that it goes on.
    in_bytes: the work is counted in bytes.
  """
  if not can_show():
    yield lambda done: None
    return
  from rich.console import Console
  from rich.markup import escape
  from rich.progress import DownloadColumn, Progress

  columns = [*Progress.get_default_columns()]
  if in_bytes:
    columns.append(DownloadColumn())
  console = Console(stderr=True)
  with Progress(*columns, console=console, transient=True) as bar:
    task = bar.add_task(escape(label), total=total)
    yield lambda done: bar.update(task, completed=done)


def can_show() -> bool:
  """Returns whether rich is there and stderr is a terminal or a notebook."""
  wanted = ['rich']
  if not sys.stderr.isatty():
    if 'ipykernel' not in sys.modules:
      return False
    wanted.append('ipywidgets')  # without it rich warns and shows nothing
  return all(importlib.util.find_spec(name) is not None for name in wanted)
