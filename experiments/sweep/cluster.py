"""The points of a sweep as one array job of SLURM, through submitit."""

import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.sweep import grid

# Those of every executor; the others are SLURM's own.
_SHARED = (
  'name timeout_min mem_gb nodes cpus_per_task gpus_per_node tasks_per_node '
  'stderr_to_stdout'
).split()


def executor(
  folder: pathlib.Path, settings: Sequence[str], *, cluster: str = 'slurm'
) -> Any:
  """Returns submitit's executor with its parameters; submits nothing.

  Args:
    folder: of what jobs print, and of the pickled calls.
    settings: `name=value` each; a name is one of submitit's, such as
      `timeout_min`, `partition` or `array_parallelism`.
    cluster: submitit's name of it; 'local' runs jobs on this machine.

  Raises:
    ValueError: submitit is not installed, a setting is none, or the cluster
      cannot be reached from here.
  """
  try:
    import submitit
  except ImportError:
    raise ValueError(
      'launcher=slurm needs submitit: pip install submitit'
    ) from None
  parameters = {'name': 'kvjax-sweep'} | dict(map(_parameter, settings))
  try:
    # This one checks the names where there is no SLURM as well.
    debug = submitit.AutoExecutor(folder, cluster='debug')
    debug.update_parameters(**parameters)
    made = submitit.AutoExecutor(folder / '%j', cluster=cluster)
    made.update_parameters(**parameters)
  except (AssertionError, NameError, RuntimeError) as error:
    raise ValueError(
      f'slurm={",".join(settings)!r}: {str(error).splitlines()[0]}'
    ) from None
  return made


def submit(executor: Any, calls: Sequence[grid.Call]) -> Iterator[grid.Record]:
  """Submits all points that are not done; returns their records, in order.

  The records wait for the jobs. Jobs go on where nobody waits for them.
  """
  records = [grid.find_done(call.run, call.place) for call in calls]
  waiting = [n for n, record in enumerate(records) if not record]
  jobs = {}
  if waiting:
    with executor.batch():
      for n in waiting:
        jobs[n] = executor.submit(run_job, calls[n])
    first, last = jobs[waiting[0]].job_id, jobs[waiting[-1]].job_id
    print(f'submitted {len(jobs)} points: jobs {first} to {last}', flush=True)
  return (
    _wait(jobs[n], call) if n in jobs else records[n]
    for n, call in enumerate(calls)
  )


def run_job(call: grid.Call) -> grid.Record:
  """Runs a point within a job; a requeued job has the same name."""
  import submitit

  job = submitit.JobEnvironment()
  owner = f'job {job.job_id}'
  return grid.run_point(*call, owner=owner, task=job.global_rank)


def _wait(job: Any, call: grid.Call) -> grid.Record:
  start = time.perf_counter()
  try:
    return job.results()[0]
  except RuntimeError as error:  # the job was cancelled, say
    reason = ' '.join(str(error).split())
    return grid.describe(call.run, call.point, 'lost', reason, start=start)


def _parameter(setting: str) -> tuple[str, int | str]:
  name, _, value = setting.partition('=')
  if not (name and value):
    raise ValueError(f'slurm={setting!r} must be name=value.')
  key = name if name in _SHARED else f'slurm_{name}'
  return key, int(value) if value.isdecimal() else value
