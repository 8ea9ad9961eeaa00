"""Writes an experiment's findings, each as soon as it is computed."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from experiments.reporting import records
from experiments.reporting.blocks import (
  Block,
  Picture,
  Table,
  page,
  without_controls,
)
from kvjax.progress_bar import show_progress

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Writer:
  """A report so far, immutable; `show` returns the next one.

  Blocks go to the terminal at once (a picture to a file), records to
  `name.jsonl` at once, and `save` makes one HTML of all blocks.

  Attributes:
    workdir: where files go.
    name: of the experiment.
    title: of the report.
    blocks: shown so far.
  """

  workdir: pathlib.Path
  name: str
  title: str
  blocks: tuple[Block, ...] = ()

  def show(self, *blocks: Block) -> 'Writer':
    """Returns the report with more blocks, after showing them."""
    from rich.console import Console

    # A pipe has no width, and the default of 80 columns would cut tables.
    console = Console(width=None if sys.stdout.isatty() else 120)
    for block in blocks:
      if isinstance(block, Picture):
        path = self.workdir / f'{block.name}.png'
        with records.writing_to(path):
          path.write_bytes(block.png)
      else:
        console.print(block.terminal())
    return dataclasses.replace(self, blocks=self.blocks + blocks)

  def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a record and returns it."""
    records.append(self.lines, record)
    return dict(record)

  @property
  def lines(self) -> pathlib.Path:
    return self.workdir / f'{self.name}.jsonl'

  def finish(self, claims: Table) -> None:
    """Shows the table of claims last, saves, and exits if a claim fails.

    Args:
      claims: rows of two cells, a claim and whether it holds.

    Raises:
      SystemExit: a claim does not hold.
    """
    self.show(claims).save()
    if not all(holds for _, holds in claims.rows):
      raise SystemExit('A claim does not hold: see the last table.')

  def save(self) -> pathlib.Path:
    """Writes the HTML report, prints its path and returns it."""
    path = self.workdir / f'{self.name}.html'
    with records.writing_to(path):
      path.write_text(page(self.title, self.blocks), encoding='utf-8')
    print(without_controls(f'Report: {path}'))
    return path


def start(
  workdir: str | pathlib.Path,
  name: str,
  title: str,
  run: Mapping[str, Any],
  *,
  append: bool = False,
) -> Writer:
  """Returns a new report: empties its JSON lines and records the run.

  Args:
    workdir: folder, created if missing.
    name: of the experiment.
    title: of the report.
    run: configuration, seed, command; the environment is added.
    append: whether to keep the JSON lines of earlier runs.

  Raises:
    OSError: files cannot be written there.
  """
  writer = Writer(pathlib.Path(workdir), name, title)
  with records.writing_to(writer.workdir):
    writer.workdir.mkdir(parents=True, exist_ok=True)
    writer.lines.open('a' if append else 'w').close()
  environment = records.environment()
  writer.record({'record': 'run', **run, 'environment': environment})
  return writer


@contextlib.contextmanager
def progress(
  label: str, total: int | None
) -> Iterator[Callable[[float], None]]:
  """Shows a bar on stderr; yields a function of the work done so far."""
  with show_progress(without_controls(label), total) as advance:
    yield advance


def follow(label: str, steps: Iterable[T], total: int) -> Iterator[T]:
  """Yields what `steps` yields, with a bar on stderr."""
  with progress(label, total) as advance:
    for done, step in enumerate(steps, 1):
      yield step
      advance(done)
