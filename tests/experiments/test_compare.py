"""The tiny setting of `experiments.compare`, whole, as a user runs it."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.compare import findings
from experiments.reporting import records

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('compare')
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.compare',
      '--config=configs/compare.py:tiny',
      f'--workdir={workdir}',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_nothing_but_the_report_goes_to_stdout(run):
  _, done = run
  assert 'The answer in small' in done.stdout
  assert 'Cached equals uncached' in done.stdout
  assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr


def test_every_claim_holds(run):
  workdir, _ = run
  found = records.read([workdir / 'compare.jsonl'])
  checks = dict(findings.claims(found, 9.0).rows)
  assert len(checks) == 6
  assert all(checks.values()), checks


def test_records_say_how_they_came_about(run):
  workdir, _ = run
  first, *rest = records.read([workdir / 'compare.jsonl'])
  assert first['config']['seed'] == 0
  assert first['environment']['devices'] >= 1
  assert first['text']['bytes'] > 100_000
  kinds = {r['record'] for r in rest}
  assert kinds == {
    'model',
    'training',
    'quality',
    'separation',
    'pace',
    'sample',
  }
  caches = {r['cache'] for r in rest if r['record'] == 'quality'}
  assert caches == {'dense', 'int8', 'ring', 'sinks', 'bounded'}


def test_titles_count_what_is_there():
  model = {'record': 'model', 'parameters': 8, 'apart': 0.0, 'hidden': 3}
  found = [model | {'variant': name} for name in ('gqa', 'mla', 'mqa')]
  heading, table = findings.models(found)
  assert heading.text == '3 models of equal size'
  assert 'against gqa' in table.columns
  heading, _ = findings.models(found[:1])
  assert heading.text == 'One model'


def test_a_slower_cache_is_not_0_times_faster():
  record = {'record': 'pace', 'variant': 'mla', 'context': 64}
  _, table, _ = findings.pace([record | {'cached': 4.0, 'uncached': 1.0}])
  assert table.rows[0][-1] == '0.25 x'


def test_plots_and_page_are_there(run):
  workdir, _ = run
  assert {p.stem for p in workdir.glob('*.png')} == {
    'bytes',
    'quality',
    'pace',
    'attention',
  }
  page = (workdir / 'compare.html').read_text()
  assert page.count('<img') == 4 and 'http' not in page
