"""Runs an experiment over a grid, one process a point.

  python -m experiments.sweep --grid seed=0,1,2 --grid model.num_kv_heads=1,2 \
      --workdir=out/sweep -- --config=configs/compare.py:tiny

A point is a folder of the workdir with the experiment's files, its output in
`log.txt` and, last, `point.json`. A second run of the sweep skips points
whose `point.json` says that they are done. A failed point is recorded, does not
stop the others, and is tried again. A grid name is a field of the config,
or with leading dashes a flag. Exit status 1 if any point failed.
"""

import pathlib
import sys

from absl import app, flags

from experiments import launch
from experiments.reporting import records
from experiments.sweep import grid

_GRID = flags.DEFINE_multi_string('grid', [], 'name=value,value,...')
_EXPERIMENT = flags.DEFINE_string('experiment', 'compare', 'Which to run.')
_WORKDIR = flags.DEFINE_string('workdir', 'out/sweep', 'Where points go.')
_TIMEOUT = flags.DEFINE_float('timeout', None, 'Seconds a point may take.')


def main(argv: list[str]) -> None:
  with launch.door():
    points = grid.points(_GRID.value)
    room = launch.ROOT / 'experiments' / _EXPERIMENT.value
    if not (
      _EXPERIMENT.value.isidentifier() and (room / '__main__.py').exists()
    ):
      raise ValueError(
        f'experiment={_EXPERIMENT.value!r} is unknown: name a folder of '
        'experiments/ that can be run.'
      )
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  lines = workdir / 'sweep.jsonl'
  lines.write_text('')
  failed = 0
  program = [sys.executable, '-m', f'experiments.{_EXPERIMENT.value}']
  for number, point in enumerate(points, 1):
    place = workdir / grid.folder(point)
    flags_ = [*argv[1:], *grid.overrides(point), f'--workdir={place}']
    record = grid.run_point(
      program + flags_, point, place, root=launch.ROOT, timeout=_TIMEOUT.value
    )
    records.append(lines, record)
    failed += record['status'] == 'failed'
    state = 'skipped, done' if record.get('skipped') else record['status']
    print(
      f'{number}/{len(points)} {place.name}: {state} '
      f'({record["seconds"]} s) {record["error"]}'.rstrip(),
      flush=True,
    )
  if failed:
    raise SystemExit(
      f'{failed} of {len(points)} points failed; see log.txt of '
      f'each in {workdir}.'
    )


def _parse(argv: list[str]) -> list[str]:
  cut = argv.index('--') if '--' in argv else len(argv)
  with launch.door():
    rest = flags.FLAGS(argv[:cut])
    if len(rest) > 1:
      raise ValueError(
        f'{rest[1]!r} is no flag: the flags of the experiment come after --.'
      )
  return [argv[0], *argv[cut + 1 :]]


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
