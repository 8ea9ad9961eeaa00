"""Does the CPU kernel wait for memory, or for arithmetic?

  python -m experiments.kernel_loop               a minute on two cores
  python -m experiments.kernel_loop --turns=9

Compiles `loop.cc` around the headers of the kernel and runs attention and
projections without XLA, on threads that never sleep: once from memory, and once
over so little data that a cache of the processor holds the data.

Expected: a time near the longer of two times, the one of memory and the one of
arithmetic, where one hides behind the other, and near their sum elsewhere.
Would be refuted by a time below either.
"""

import pathlib
import tempfile

from absl import flags

from experiments import launch
from experiments.kernel_loop import loop
from experiments.reporting.blocks import Table, Text
from experiments.reporting.writer import follow, start
from kvjax.native.build import BuildError

_TURNS = flags.DEFINE_integer(
  'turns', 5, 'Repeats of each time.', lower_bound=1
)
_WORKDIR = flags.DEFINE_string('workdir', 'out/kernel_loop', 'Where files go.')

COLUMNS = ('MB', 'reading ms', 'arithmetic ms', 'ms', 'of floor', 'GFLOP/s')


def table(title: str, names: tuple[str, ...], records: list[dict]) -> Table:
  """Returns what matters of records of one kind."""
  rows = [
    [
      *(r[name] for name in names),
      round(r['bytes'] / 1e6, 1),
      *(round(1e3 * r[x], 2) for x in ('reading', 'arithmetic', 'seconds')),
      round(r['of_floor'], 2),
      round(r['flops'] / 1e9),
    ]
    for r in records
  ]
  return Table(title, (*names, *COLUMNS), rows)


def main(argv: list[str]) -> None:
  del argv
  with launch.door(), tempfile.TemporaryDirectory() as folder:
    try:
      lib = loop.build(pathlib.Path(folder))
    except BuildError as error:
      raise ValueError(f'the kernel cannot be compiled here: {error}') from None
  run = {'command': launch.command(), 'turns': _TURNS.value}
  title = 'The CPU kernel in a loop'
  writer = start(_WORKDIR.value, 'kernel_loop', title, run)
  rows = map(writer.record, loop.rows(lib, turns=_TURNS.value))
  records = list(follow('loop', rows, 1 + len(loop.CASES)))
  machine = records.pop(0)
  kinds = {
    'attention': ('dtype', 'groups', 'width', 'rotary'),
    'projection': ('dtype', 'rows', 'lines', 'width'),
  }
  summary = Text(
    f'{machine["threads"]} threads: {machine["flops"] / 1e9:.0f} GFLOP/s of '
    f'multiply-adds in registers, {machine["read"] / 1e9:.1f} GB/s of a sum.'
  )
  for kind, names in kinds.items():
    rows_of_kind = [r for r in records if r['record'] == kind]
    writer = writer.show(table(kind.capitalize(), names, rows_of_kind))
  print(f'Report: {writer.show(summary).save()}')


if __name__ == '__main__':
  launch.run(main)
