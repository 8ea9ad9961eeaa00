"""Does the plan bound the memory that XLA needs, and how tightly?

  python -m experiments.transients                      10 minutes on two cores
  python -m experiments.transients --seed=7 --count=1                one case

Draws models, caches and calls from seeds, compiles each for this machine and
compares `MemoryPlan.total_bytes` with XLA's peak. Shows the five cases that are
least and the five that are most over it, and writes every case as a JSON line.

Expected (JAX 0.10.2): no plan is under the peak; steps are at most 5 % over it,
prefills 10 %. Another XLA may schedule otherwise. A plan under the peak of its
program refutes the claim that the plan is an upper bound.
"""

from absl import flags

from experiments import launch
from experiments.reporting.blocks import Table, Text
from experiments.reporting.writer import follow, start
from experiments.transients.programs import compare, holds

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
  ordered = sorted(records, key=lambda record: record['over'])
  extreme = ordered if len(ordered) <= 10 else [*ordered[:5], *ordered[-5:]]
  count = sum(map(holds, records))
  columns = ('seed', 'case', 'planned_total', 'peak', 'over', 'allowed')
  writer = writer.show(
    Table.of(
      'The least and the most over the peak: bytes',
      {name: name for name in columns},
      extreme,
    ),
    Text(f'{count} of {len(records)} plans bound the peak as they should.'),
  )
  writer.save()


if __name__ == '__main__':
  launch.run(main)
