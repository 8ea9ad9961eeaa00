"""How well does the plan predict the temporaries that XLA needs?

  python -m experiments.transients                      10 minutes on two cores
  python -m experiments.transients --seed=7 --count=1           a case by itself

Draws models, caches and calls from seeds, compiles each for this machine and
holds `MemoryPlan.temporaries_bytes` against what XLA assigned. Shows the worst
ten and writes every case as a JSON line.

Expected: at most one case in fifty outside a factor of 1.25 either way.
"""

from absl import flags

from experiments import launch
from experiments.reporting.blocks import Table, Text
from experiments.reporting.writer import follow, start
from experiments.transients.programs import FACTOR, compare, distance

_SEED = flags.DEFINE_integer('seed', 0, 'First seed.')
_COUNT = flags.DEFINE_integer('count', 200, 'Cases.', lower_bound=1)
_WORKDIR = flags.DEFINE_string('workdir', 'out/transients', 'Where files go.')


def main(argv: list[str]) -> None:
  del argv
  run = {'command': launch.command(), 'seed': _SEED.value}
  writer = start(_WORKDIR.value, 'transients', 'Planned and assigned', run)
  seeds = range(_SEED.value, _SEED.value + _COUNT.value)
  cases = (writer.record(compare(seed)) for seed in seeds)
  records = list(follow('compile', cases, len(seeds)))
  worst = sorted(records, key=distance, reverse=True)
  inside = sum(distance(r) <= FACTOR for r in records)
  columns = 'seed', 'case', 'planned', 'temporaries', 'ratio'
  writer = writer.show(
    Table(
      'The worst ten: bytes of temporaries',
      columns,
      [[r[name] for name in columns] for r in worst[:10]],
    ),
    Text(f'{inside} of {len(records)} within a factor of {FACTOR} either way.'),
  )
  print(f'Report: {writer.save()}')


if __name__ == '__main__':
  launch.run(main)
