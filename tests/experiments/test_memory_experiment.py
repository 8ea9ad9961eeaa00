"""`experiments.memory` as a user runs it, on a tiny checkpoint."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import kvjax
from configs.memory import get_config
from experiments import launch
from experiments.memory import __main__ as memory
from experiments.memory import tables
from experiments.reporting import records
from kvjax.text import smollm2
from tests.checkpoints.writing import GOLDEN

ROOT = pathlib.Path(__file__).parents[2]


def start(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.memory', *flags],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=900,
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('memory')
  done = start(
    '--config=configs/memory.py:tiny',
    '--checkpoint=tests/golden/checkpoints/llama',
    '--device=RTX 4090',
    '--compare=mha,mqa',
    f'--workdir={workdir}',
  )
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_tables_pictures_and_page_are_there(run):
  workdir, done = run
  for text in ('It fits', 'a cache of past queries', 'paid by', '4090'):
    assert text in done.stdout, text
  for name in ('breakdown', 'growth', 'frontier', 'lives'):
    assert (workdir / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
  page = (workdir / 'memory.html').read_text()
  assert page.count('data:image/png;base64,') == 4
  assert 'http://' not in page and 'https://' not in page


def test_the_plan_is_what_xla_was_given(run):
  workdir, _ = run
  found = records.read([workdir / 'memory.jsonl'])
  plans = {r['model']: r['plan'] for r in found if r['record'] == 'plan'}
  assert len(plans) == 3
  own = plans['tests/golden/checkpoints/llama']
  (measured,) = (r for r in found if r['record'] == 'measured')
  # Two rows' tokens, int32, are arguments too.
  kept = own['params_bytes'] + own['cache_bytes']
  assert measured['arguments'] == kept + 2 * 4
  assert measured['alias'] == own['cache_bytes']
  # An upper bound: the model is so small that its allowance of 16 KiB counts.
  over = own['total_bytes'] - measured['peak']
  assert 0 <= over <= 0.05 * measured['peak'] + (16 << 10)


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('llama', {}),
    ('t5', {'source_length': 7}),
    ('llama', {'mesh': {'heads': 2}}),
  ],
)
def test_rows_add_up_to_the_total_or_are_set_apart(name, options):
  config = kvjax.load_config(GOLDEN / name)
  plan = kvjax.memory.plan(config, batch_size=2, capacity=16, **options)
  _, summed, others = tables.plan_table(name, plan)
  place = summed.columns.index('bytes')
  assert sum(row[place] for row in summed.rows) == plan.total_bytes
  assert summed.total[place] == plan.total_bytes
  assert not others.total
  assert len(summed.rows) + len(others.rows) == len(plan.lines)
  sizes = [row[place + 1] for row in (*summed.rows, *others.rows)]
  assert all(text.endswith(('bytes', 'KiB', 'MiB')) for text in sizes)
  # A word in the first column, and a letter of a formula, is explained.
  assert {row[0] for row in others.rows} == set(
    re.findall('`([a-z ]+)`:', others.note)
  )
  letters = {
    letter
    for row in (*summed.rows, *others.rows)
    for letter in re.findall(r'\b[A-Z]\b', row[-2])
  }
  assert letters <= set(re.findall(r'\b([A-Z])[:]', summed.note))


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  (
    ('model', 'llama-3-9b', "'llama-3-9b'; the nearest known: llama-3-8b"),
    ('device', 'H20', "unknown device 'H20'; the nearest known: H200"),
    ('batch', -1, 'batch=-1 must be a positive integer'),
    ('context', 0, 'context=0 must be a positive integer'),
    ('devices', 0, 'devices=0 must be a positive integer'),
    ('cache', 'int9', "'int9' is no name"),
    ('compare', ('mxa',), "variant='mxa' is unknown; known: mha"),
    ('checkpoint', '/no/such', "'/no/such'"),
  ),
)
def test_nonsense_ends_in_one_line_and_status_2(field, value, words, capsys):
  config = launch.override(get_config(), {field: value})
  with pytest.raises(SystemExit) as stop, launch.door():
    memory.check(config)
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_a_built_model_by_its_name(monkeypatch):
  monkeypatch.setattr(smollm2, 'directory', lambda: GOLDEN / 'llama')
  config = launch.override(
    get_config(), {'model': 'smollm2-135m', 'device': 'RTX 4090'}
  )
  config.context, config.contexts, config.batch = 16, (16,), 2
  setup = memory.check(config)
  want = kvjax.load_config(GOLDEN / 'llama')
  assert setup.models['smollm2-135m'] == want
