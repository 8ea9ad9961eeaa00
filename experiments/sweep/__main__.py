r"""Runs an experiment over a grid, one process a point.

  python -m experiments.sweep --grid seed=0,1,2 --grid model.num_kv_heads=1,2 \
      --workdir=out/sweep -- --config=configs/compare.py:tiny

A point is a folder of the workdir with the experiment's files, its output in
`log.txt` and, last, `point.json`. While a point runs, its time and the last
line of its log are shown: all the time on a terminal, every minute elsewhere.
A second run of the sweep skips points whose `point.json` says that they are
done. A failed point is recorded, does not stop the others, and is tried again.
Ctrl-C ends the running point; the same command goes on from there. A grid name
is a field of the config, or with leading dashes a flag. Exit status 1 if any
point failed.
"""

import pathlib
import signal
import sys

from absl import flags

from experiments import launch
from experiments.reporting import records
from experiments.reporting.blocks import without_controls
from experiments.sweep import grid
from experiments.sweep.status_line import show_status

_GRID = flags.DEFINE_multi_string('grid', [], 'name=value,value,...')
_EXPERIMENT = flags.DEFINE_string('experiment', 'compare', 'Which to run.')
_WORKDIR = flags.DEFINE_string('workdir', 'out/sweep', 'Where points go.')
_TIMEOUT = flags.DEFINE_float('timeout', None, 'Seconds a point may take.', 0)


def main(argv: list[str]) -> None:
  experiment, words = _EXPERIMENT.value, argv[1:]
  with launch.door():
    if words and sys.argv[-len(words) - 1] != '--':
      raise ValueError(
        f'{words[0]!r} is no flag: the flags of the experiment come after --.'
      )
    points = grid.points(_GRID.value)
    file = launch.ROOT / 'experiments' / experiment / '__main__.py'
    if not (experiment.isidentifier() and file.exists()):
      raise ValueError(
        f'experiment={experiment!r} is unknown: name a folder of '
        'experiments/ that can be run.'
      )
  workdir = pathlib.Path(_WORKDIR.value).resolve()
  lines = workdir / 'sweep.jsonl'
  with records.writing_to(lines):
    workdir.mkdir(parents=True, exist_ok=True)
    lines.write_text('')
  for ending in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(ending) == signal.SIG_DFL:  # nohup ignores SIGHUP
      # The point has a session of its own: the sweep must outlive the signal
      # to end it.
      signal.signal(ending, lambda number, _: sys.exit(128 + number))
  failed = 0
  program = [sys.executable, '-m', f'experiments.{experiment}', *words]
  for number, point in enumerate(points, 1):
    place = workdir / grid.folder(point)
    run = [*program, *grid.overrides(point), f'--workdir={place}']
    print(f'{number}/{len(points)} {place.name}', flush=True)
    with show_status() as watch:
      record = grid.run_point(run, point, place, _TIMEOUT.value, watch)
    records.append(lines, record)
    failed += record['status'] == 'failed'
    state = 'skipped, done' if record.get('skipped') else record['status']
    error = without_controls(record['error'])
    print(f'  {state} ({record["seconds"]} s) {error}'.rstrip(), flush=True)
  if failed:
    raise SystemExit(
      f'{failed} of {len(points)} points failed; see log.txt of '
      f'each in {workdir}.'
    )


if __name__ == '__main__':
  launch.run(main, arguments=True)
