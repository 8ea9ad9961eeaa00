"""The benchmark end to end in small, and what it must refuse to time."""

import json

import pytest

from kvjax.benchmark import attention, clock, findings
from kvjax.kernels import available
from tests.experiments.commands import ROOT


def test_attention_is_checked_then_timed():
  case = attention.Case(2, 2, 3, 8, 40, 24, 'int8')
  results = attention.measure(case, attention.Pace(1, 0))
  usable = {f'kvjax {name}' for name, why in available().items() if not why}
  assert set(results) == usable
  assert case.bytes == 2 * 2 * 2 * 24 * (8 + 4)
  for row in clock.rate(results, read=1e9):
    assert row['bytes'] == case.bytes
    assert row['of_floor'] == pytest.approx(row['bytes'] / row['seconds'] / 1e9)


def test_what_computes_something_else_is_not_timed():
  wrong = clock.Runner(lambda: pytest.fail('it was timed'), 1, '', error=0.5)
  with pytest.raises(ValueError, match='computes something else'):
    clock.race({'wrong': wrong}, 1)


def test_ratios_say_how_much_longer_a_peer_takes():
  results = {
    'ours': {'seconds': 1.0, 'bytes': 8, 'kernel': 'ffi'},
    'peer': {'seconds': 3.0, 'bytes': 8, 'kernel': ''},
  }
  ours, peer = clock.rate(results, read=16.0)
  assert ours['ratios'] == {'peer': 3.0} and ours['of_floor'] == 0.5
  assert peer['ratios'] == {}


def test_two_runs_are_compared_row_by_row():
  row = {'record': 'step', 'batch': 1, 'context': 8, 'name': 'a'}
  row |= {'seconds': 2.0}
  shown = findings.compare([row], [row | {'seconds': 1.0}])
  assert shown.rows[0][-1] == 0.5
  with pytest.raises(ValueError, match='no row in common'):
    findings.compare([row], [row | {'batch': 2}])


def test_who_fails_is_named_and_the_others_are_timed():
  def fails():
    raise RuntimeError('no kernel\nfor this')

  good = clock.Runner(lambda: None, 1, '')
  entries = {
    'absent': fails, 'good': lambda: good,
    'wrong': lambda: clock.Runner(lambda: None, 1, 'ffi', error=0.5),
  }  # fmt: skip
  runners, skipped = clock.enter(entries)
  assert list(runners) == ['good']
  assert skipped['absent'] == {'skipped': 'RuntimeError: no kernel'}
  rows = clock.rate(clock.race(runners, 1) | skipped, read=1.0)
  named = {row['name']: {'record': 'attention', **row} for row in rows}
  named['kvjax'] = named.pop('wrong') | {'name': 'kvjax'}
  assert findings.wrongs(list(named.values())) == ['attention  kvjax']
  shown, text = findings.section('All', list(named.values()), 1.0)
  assert len(shown.rows) == 1 and 'absent (RuntimeError' in text.text


def test_growth_on_paper(tmp_path, commands):
  ended = commands('scaling', f'--workdir={tmp_path}')
  assert ended.code == 0, ended.err
  lines = (tmp_path / 'scaling.jsonl').read_text().splitlines()
  kinds = {json.loads(line)['record'] for line in lines}
  assert kinds == {'run', 'intensity', 'prediction', 'published'}


def test_tiny_runs_end_to_end(tmp_path, commands):
  config = f'--config={ROOT}/configs/benchmark_cpu.py:tiny'
  ended = commands('benchmark', config, f'--workdir={tmp_path}')
  assert ended.code == 0, ended.err
  lines = (tmp_path / 'benchmark.jsonl').read_text().splitlines()
  kinds = {json.loads(line)['record'] for line in lines}
  wanted = 'run bandwidth attention latent layer step generate overhead'
  assert set(wanted.split()) <= kinds
