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
point failed. --launcher=slurm runs all points as jobs of one array:
  --launcher=slurm --slurm=partition=gpu,gpus_per_node=8,timeout_min=60
"""

import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments import launch, processes
from experiments.reporting import records
from experiments.reporting.blocks import without_controls
from experiments.sweep import cluster, grid
from experiments.sweep.status_line import show_status

_GRID = flags.DEFINE_multi_string('grid', [], 'name=value,value,...')
_EXPERIMENT = flags.DEFINE_string('experiment', 'compare', 'Which to run.')
_WORKDIR = flags.DEFINE_string('workdir', 'out/sweep', 'Where points go.')
_LAUNCHER = flags.DEFINE_enum(
  'launcher', 'local', ['local', 'slurm'], 'Where points run.'
)
_SLURM = flags.DEFINE_list(
  'slurm', [], "name=value,... of submitit's parameters, such as partition."
)
_TIMEOUT = flags.DEFINE_float('timeout', None, 'Seconds a point may take.', 0)


def main(argv: list[str]) -> None:
  with launch.door():
    program = _program(argv[1:])
    points = grid.points(_GRID.value)
    workdir = pathlib.Path(_WORKDIR.value).resolve()
    executor = _executor(workdir)
  calls = []
  for point in points:
    place = workdir / grid.folder(point)
    run = [*program, *grid.overrides(point), f'--workdir={place}']
    calls.append(grid.Call(run, point, place, _TIMEOUT.value))
  lines = workdir / 'sweep.jsonl'
  with records.writing_to(lines):
    workdir.mkdir(parents=True, exist_ok=True)
    lines.write_text('')
  for ending in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(ending) == signal.SIG_DFL:  # nohup ignores SIGHUP
      # The point has a session of its own: the sweep must outlive the signal
      # to end it.
      signal.signal(ending, lambda number, _: sys.exit(128 + number))
  with launch.door((OSError, RuntimeError)):  # of sbatch
    found = cluster.submit(executor, calls) if executor else _run_here(calls)
  failed = 0
  for number, call in enumerate(calls, 1):
    print(f'{number}/{len(calls)} {call.place.name}', flush=True)
    record = next(found)
    records.append(lines, record)
    failed += record['status'] == 'failed'
    state = 'skipped, done' if record.get('skipped') else record['status']
    error = without_controls(record['error'])
    print(f'  {state} ({record["seconds"]} s) {error}'.rstrip(), flush=True)
  if failed:
    raise SystemExit(
      f'{failed} of {len(calls)} points failed; see log.txt of '
      f'each in {workdir}.'
    )


def _program(words: list[str]) -> list[str]:
  """Returns the command line of the experiment, without a point's flags."""
  if words and sys.argv[-len(words) - 1] != '--':
    raise ValueError(
      f'{words[0]!r} is no flag: the flags of the experiment come after --.'
    )
  experiment = _EXPERIMENT.value
  file = launch.ROOT / 'experiments' / experiment / '__main__.py'
  if not (experiment.isidentifier() and file.exists()):
    raise ValueError(
      f'experiment={experiment!r} is unknown: name a folder of '
      'experiments/ that can be run.'
    )
  return [sys.executable, '-m', f'experiments.{experiment}', *words]


def _executor(workdir: pathlib.Path) -> Any:
  """Returns what submits jobs, or None where points run here."""
  if _LAUNCHER.value == 'slurm':
    return cluster.executor(workdir / 'slurm', _SLURM.value)
  if _SLURM.value:
    raise ValueError(f'slurm={_SLURM.value}: these need --launcher=slurm.')
  tasks = processes.count_tasks()
  if tasks > 1:
    raise ValueError(
      f'A sweep is one process, and this step has {tasks}. Start it without '
      'srun, with --launcher=slurm.'
    )
  return None


def _run_here(calls: list[grid.Call]) -> Iterator[grid.Record]:
  for call in calls:
    with show_status() as watch:
      record = grid.run_point(*call, watch)
    yield record


if __name__ == '__main__':
  launch.run(main, arguments=True, computes=False)
