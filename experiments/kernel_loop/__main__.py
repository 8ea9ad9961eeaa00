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

# By kind of record, the fields that tell its cases apart.
FIELDS = {
  'attention': ('dtype', 'groups', 'width', 'rotary'),
  'projection': ('dtype', 'rows', 'lines', 'width'),
}
TIMES = {
  'MB': lambda row: round(row['bytes'] / 1e6, 1),
  'reading ms': lambda row: round(1e3 * row['reading'], 2),
  'arithmetic ms': lambda row: round(1e3 * row['arithmetic'], 2),
  'ms': lambda row: round(1e3 * row['seconds'], 2),
  'of floor': lambda row: round(row['of_floor'], 2),
  'GFLOP/s': lambda row: round(row['flops'] / 1e9),
}


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
  summary = Text(
    f'{machine["threads"]} threads: {machine["flops"] / 1e9:.0f} GFLOP/s of '
    f'multiply-adds in registers, {machine["read"] / 1e9:.1f} GB/s of a sum.'
  )
  for kind, fields in FIELDS.items():
    columns = {field: field for field in fields} | TIMES
    cases = [row for row in records if row['record'] == kind]
    writer = writer.show(Table.of(kind.capitalize(), columns, cases))
  writer.show(summary).save()


if __name__ == '__main__':
  launch.run(main)
