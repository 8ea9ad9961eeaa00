"""Claims on points, and points as jobs, through submitit's own executors."""

import concurrent.futures
import json
import os
import sys
import threading
import time

import pytest

from experiments.sweep import claim, cluster, grid

QUICK = [sys.executable, '-S', '-c']


def run_point(place, code='', **more):
  return grid.run_point([*QUICK, code], {}, place, **more)


def test_one_of_several_processes_runs_a_point(tmp_path, monkeypatch):
  """All of them see that nobody has the point before one of them takes it."""
  count = 4
  ready, check = threading.Barrier(count), claim.check

  def check_together(place, owner):
    number = check(place, owner)
    ready.wait(30)
    return number

  monkeypatch.setattr(claim, 'check', check_together)
  code = f'open({str(tmp_path / "runs")!r}, "a").write("run\\n")'
  with concurrent.futures.ThreadPoolExecutor(count) as pool:
    owners = [f'owner {n}' for n in range(count)]
    records = list(
      pool.map(
        lambda owner: run_point(tmp_path / 'a', code, owner=owner), owners
      )
    )
  assert (tmp_path / 'runs').read_text() == 'run\n'
  found = sorted(record['status'] for record in records)
  assert found == ['claimed'] * (count - 1) + ['done']


def test_a_claim_holds_until_it_is_released(tmp_path):
  with claim.claimed(tmp_path, 'job 1') as keep:
    record = run_point(tmp_path, owner='job 2')
    assert record['status'] == 'claimed'
    assert record['error'].startswith('job 1 runs it, as of 0 s ago')
    assert not (tmp_path / 'point.json').exists()
    assert not (tmp_path / 'log.txt').exists()
    keep()
  assert run_point(tmp_path, owner='job 2')['status'] == 'done'
  assert run_point(tmp_path, owner='job 3')['skipped']


def test_a_requeued_job_takes_its_own_claim(tmp_path):
  (tmp_path / '.claim-1').write_text('job 1')  # its process was killed
  assert run_point(tmp_path, owner='job 2')['status'] == 'claimed'
  assert run_point(tmp_path, owner='job 1')['status'] == 'done'


def test_a_claim_of_a_dead_process_holds_two_minutes(tmp_path):
  (tmp_path / '.claim-9').write_text('job 1')
  for seconds, status in ((100, 'claimed'), (140, 'done')):
    then = time.time() - seconds
    os.utime(tmp_path / '.claim-9', (then, then))
    assert run_point(tmp_path, owner='job 2')['status'] == status
  names = {path.name for path in tmp_path.glob('.claim*')}
  assert names == {'.claim-9', '.claim-10'}


def test_a_process_that_was_stopped_notices(tmp_path):
  """Its point belongs to another one now, so it ends its own run."""
  code = 'import time; print(1); time.sleep(20)'

  def take(seconds, line):
    (tmp_path / '.claim-2').write_text('job 2')

  record = run_point(tmp_path, code, owner='job 1', watch=take)
  assert record['status'] == 'claimed' and record['seconds'] < 15
  assert 'another process took it' in record['error']
  assert not (tmp_path / 'point.json').exists()


def test_a_task_that_is_not_the_first_writes_its_log_alone(tmp_path):
  record = run_point(tmp_path, 'print(5)', owner='job 1', task=1)
  assert record['status'] == 'done'
  assert [path.name for path in tmp_path.iterdir()] == ['log-1.txt']
  with claim.claimed(tmp_path, 'job 2'):
    record = run_point(tmp_path, owner='job 1', task=1)
  assert record['status'] == 'claimed'


def test_a_cluster_without_submitit_is_refused(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(ValueError, match='pip install submitit$'):
    cluster.executor(tmp_path, [])


SETTINGS = {
  'unknown': ('partitoin=gpu', "Unknown argument 'partitoin' for .* partition"),
  'wrong_type': ('timeout_min=hour', '"timeout_min" expected type .* "hour"'),
  'no_value': ('partition', 'must be name=value'),
  'empty_value': ('partition=', 'must be name=value'),
  'no_name': ('=gpu', 'must be name=value'),
  'no_slurm_here': ('partition=gpu', 'Could not detect "srun"'),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_a_bad_setting_is_refused(tmp_path, monkeypatch, name):
  pytest.importorskip('submitit', reason='pip install submitit')
  monkeypatch.setenv('PATH', str(tmp_path))
  setting, message = SETTINGS[name]
  with pytest.raises(ValueError, match=f'(?s)^slurm=.*{message}') as error:
    cluster.executor(tmp_path / 'slurm', ['gpus_per_node=8', setting])
  assert len(str(error.value).splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_points_are_one_array_job(tmp_path, monkeypatch):
  """What sbatch is given; this one keeps its script and runs nothing."""
  pytest.importorskip('submitit', reason='pip install submitit')
  sbatch = tmp_path / 'bin' / 'sbatch'
  sbatch.parent.mkdir()
  script = tmp_path / 'script'
  sbatch.write_text(
    f'#!/bin/sh\ncp "$1" {script}\necho "Submitted batch job 12"\n'
  )
  for path in (sbatch, sbatch.with_name('srun')):
    path.touch()
    path.chmod(0o755)
  monkeypatch.setenv('PATH', str(sbatch.parent), prepend=os.pathsep)
  settings = ['partition=gpu', 'gpus_per_node=8', 'timeout_min=60']
  settings += ['array_parallelism=2', 'nodes=2']
  executor = cluster.executor(tmp_path / 'slurm', settings)
  places = [tmp_path / name for name in 'abcd']
  calls = [grid.Call([*QUICK, ''], {}, place) for place in places]
  grid.run_point(*calls[0])
  cluster.submit(executor, calls)
  options = script.read_text().split('\n')
  for option in ('array=0-2%2', 'partition=gpu', 'gpus-per-node=8', 'time=60'):
    assert f'#SBATCH --{option}' in options
  assert '#SBATCH --nodes=2' in options
  assert not any(place.exists() for place in places[1:])


def test_jobs_write_what_the_loop_writes(tmp_path, capfd, monkeypatch):
  """Three jobs of submitit's local executor; then two are run again."""
  submitit = pytest.importorskip('submitit', reason='pip install submitit')
  monkeypatch.setattr(submitit.Job, '_results_timeout_s', 1)
  executor = cluster.executor(tmp_path / 'jobs', [], cluster='local')
  file = tmp_path / 'file'
  kill = f'os.path.exists({str(file)!r}) or os.kill(os.getppid(), 9)'
  codes = {
    'good': 'print(3)',
    'bad': f'open({str(file)!r})',
    'killed': f'import os; {kill}',  # it ends its job, as a cluster does
  }
  calls = [
    grid.Call([*QUICK, code], {'x': name}, tmp_path / name)
    for name, code in codes.items()
  ]
  good, bad, killed = cluster.submit(executor, calls)
  assert (good['status'], bad['status'], bad['code']) == ('done', 'failed', 1)
  assert (tmp_path / 'good' / 'log.txt').read_text() == '3\n'
  for record in (good, bad):
    place = tmp_path / record['point']['x']
    assert json.loads((place / 'point.json').read_text()) == record
    assert (place / '.claim-1').read_text().startswith('job ')
  assert (killed['status'], killed['code']) == ('failed', 'lost')
  assert killed['error'] and not (tmp_path / 'killed' / 'point.json').exists()
  assert 'submitted 3 points' in capfd.readouterr().out
  file.touch()
  os.utime(tmp_path / 'killed' / '.claim-1', (0, 0))  # minutes later
  assert [x['status'] for x in cluster.submit(executor, calls)] == ['done'] * 3
  assert 'submitted 2 points' in capfd.readouterr().out
  assert all(x['skipped'] for x in cluster.submit(executor, calls))
  assert 'submitted' not in capfd.readouterr().out
