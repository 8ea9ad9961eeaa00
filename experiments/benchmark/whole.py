"""A whole run: part after part, each row written as it is found."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import jax

from experiments.benchmark import tables
from experiments.benchmark.sections import SECTIONS, Run
from experiments.measuring import clock
from experiments.reporting.blocks import Text
from experiments.reporting.writer import Writer, progress
from kvjax.kernels import interpreted


def measure(
  config: Any, writer: Writer, budget: clock.Budget
) -> tuple[Writer, list[str]]:
  """Measures everything; each row is written as it is found.

  Returns:
    The report, and what of kvjax failed or was wrong.
  """
  interpret = config.interpret and jax.default_backend() == 'cpu'
  with contextlib.ExitStack() as stack:
    if interpret:
      stack.enter_context(interpreted())
    limits = clock.bandwidth(config.bandwidth, config.repeats, config.calls)
    writer.record({'record': 'bandwidth', **limits})
    run = Run(config, writer.workdir, budget, limits, stack)
    return sections(run, writer)


def sections(run: Run, writer: Writer) -> tuple[Writer, list[str]]:
  """Measures the parts that a run's config names; see `measure`."""
  read, found = run.limits['read'], []
  for name in run.config.sections:
    title, _ = SECTIONS[name]
    if run.budget.spent:
      writer.record({'record': 'stopped', 'section': name})
      writer = writer.show(Text(f'Not begun, the budget was spent: {title}.'))
      continue
    with progress(title, 1):
      part = list(map(writer.record, _rows(name, run)))
    clock.give_back()
    writer = writer.show(*tables.section(title, part))
    found += part
    if any(row.get('interrupted') for row in part):
      break
  writer = writer.show(*tables.verdict(found))
  writer = writer.show(*tables.picture(found, read))
  return writer, tables.wrongs(found)


def _rows(name: str, run: Run) -> Iterator[dict[str, Any]]:
  """Yields a part's records; if it fails, the last says so: the rest go on.

  Unless it was interrupted, which ends the run.
  """
  about = {'record': name, 'name': 'the part', 'passed': False, 'ended': True}
  try:
    yield from SECTIONS[name][1](run)
  except KeyboardInterrupt:  # what was found until then is reported
    yield about | {'failed': 'interrupted', 'interrupted': True}
  except Exception as error:
    traceback.print_exc()
    yield about | {'failed': clock.reason(error)}
