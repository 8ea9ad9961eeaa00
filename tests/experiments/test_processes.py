"""Processes of a step: who joins, and that one of them writes."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import pytest
from absl import flags

from experiments import processes
from tests.experiments.commands import ROOT, run

SRUN = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': '127.0.0.1',
  'SLURM_STEP_NUM_TASKS': '2',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '0',
  'SLURM_LOCALID': '0',
}
MPIRUN = {
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
  'OMPI_COMM_WORLD_SIZE': '3',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}
SBATCH = {k: v for k, v in SRUN.items() if 'STEP' not in k}
SALLOC = {k: SRUN[k] for k in ('SLURM_JOB_ID', 'SLURM_NTASKS')}
STEPS = {
  'nothing': ({}, 1),
  'srun_of_two': (SRUN, 2),
  'srun_that_counts_once': (SBATCH | {'SLURM_STEP_NODELIST': 'a[1-2]'}, 2),
  'srun_of_one': (
    SRUN | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '1'},
    1,
  ),
  'script_of_sbatch': (SBATCH, 1),
  'shell_of_salloc': (SALLOC, 1),
  'interactive_step': (SRUN | {'SLURM_STEP_NUM_TASKS': '1'}, 1),
  'mpirun_of_three': (MPIRUN, 3),
  'mpi_without_mpirun': ({'OMPI_COMM_WORLD_SIZE': '3'}, 1),
}


@pytest.fixture
def environment(monkeypatch):
  """Returns a function that sets the variables of a step, and no others."""
  for name in os.environ:
    if name.startswith(('SLURM_', 'OMPI_')):
      monkeypatch.delenv(name)

  def set_all(variables):
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return set_all


@pytest.mark.parametrize('name', STEPS)
def test_auto_joins_a_step_of_several_tasks(name, environment, monkeypatch):
  variables, count = STEPS[name]
  environment(variables)
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda: calls.append(1))
  assert processes.count_tasks() == count
  for distributed, joins in (
    ('auto', count > 1),
    ('no', False),
    ('yes', True),
  ):
    calls.clear()
    processes.join(distributed)
    assert len(calls) == joins


def test_joining_without_a_cluster_is_one_line(environment):
  environment({})
  with pytest.raises(ValueError, match="distributed='yes': JAX cannot join"):
    processes.join('yes')


def test_two_processes_write_one_set_of_records(tmp_path, environment):
  """Two tasks of a simulated step, which JAX joins by its own detection."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  out, scratch = tmp_path / 'out', tmp_path / 'scratch'
  scratch.mkdir()
  environment(
    SRUN
    | {
      'JAX_COORDINATOR_PORT': port,
      'JAX_PLATFORMS': 'cpu',
      'TMPDIR': str(scratch),
    }
  )
  command = [sys.executable, '-m', 'experiments.scaling', f'--workdir={out}']
  tasks = [
    subprocess.Popen(
      command,
      cwd=ROOT,
      env=os.environ | {'SLURM_PROCID': task, 'SLURM_LOCALID': task},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for task in '01'
  ]
  (first, first_err), (second, err) = (
    x.communicate(timeout=120) for x in tasks
  )
  assert [x.returncode for x in tasks] == [0, 0], first_err + err
  assert first.rstrip().endswith(f'Report: {out}/scaling.html')
  assert (second, err) == ('', '')
  lines = (out / 'scaling.jsonl').read_text().splitlines()
  start, *rows = map(json.loads, lines)
  assert start['environment']['process_count'] == 2
  assert start['environment']['devices'] == 2
  assert rows and len(set(lines)) == len(lines)
  assert not any(row['record'] == 'run' for row in rows)
  assert not list(scratch.iterdir())


def test_another_process_writes_to_a_folder_that_ends(monkeypatch, capsys):
  values = flags.FlagValues()
  for name, value in (('workdir', 'out/x'), ('out', ''), ('text', 'a/b')):
    flags.DEFINE_string(name, value, 'help', flag_values=values)
  values.mark_as_parsed()
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  with processes.one_writer(values):
    place = pathlib.Path(values.workdir)
    print('a table')
    assert place.is_absolute() and place.name == 'x' and place.parent.exists()
    assert (values.out, values.text) == ('', 'a/b')
  assert not place.parent.exists()
  assert capsys.readouterr().out == ''


NO_DEVICE = """
import importlib, pathlib, runpy
import jax
from absl import flags
for path in sorted(pathlib.Path('experiments').glob('*/__main__.py')):
  importlib.import_module(f'experiments.{path.parent.name}.__main__')
  for name in list(flags.FLAGS):  # the next one may define it as well
    delattr(flags.FLAGS, name)
for path in sorted(pathlib.Path('configs').glob('*.py')):
  made = runpy.run_path(str(path))
  if 'get_config' in made:
    made['get_config']()
try:
  jax.devices()
except RuntimeError as error:
  print(error)
"""


def test_imports_and_configs_touch_no_device():
  """They come before the processes are joined; here there is no device."""
  ended = subprocess.run(
    [sys.executable, '-c', NO_DEVICE],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'nowhere'},
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 0, ended.stderr
  assert 'nowhere' in ended.stdout  # a device would have been noticed


def test_a_sweep_is_one_process(environment, tmp_path):
  environment(SRUN)
  ended = run('sweep', '--grid=seed=0', f'--workdir={tmp_path / "out"}')
  assert ended.code == 2
  assert re.search('A sweep is one process, and this step has 2', ended.err)
  assert not (tmp_path / 'out').exists()
