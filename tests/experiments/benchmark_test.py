"""The benchmark end to end in small, and what it must refuse to time."""

import json

import pytest

from kvjax.benchmark import attention, clock, findings
from kvjax.kernels import available
from tests.experiments.commands import ROOT, run


def test_attention_is_checked_then_timed():
  case = attention.Case(2, 2, 3, 8, 40, 24, 'int8')
  results = attention.measure(case, 1, 0)
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


def test_tiny_runs_end_to_end(tmp_path):
  config = f'--config={ROOT}/configs/benchmark_cpu.py:tiny'
  ended = run('benchmark', config, f'--workdir={tmp_path}')
  assert ended.code == 0, ended.err
  lines = (tmp_path / 'benchmark.jsonl').read_text().splitlines()
  kinds = {json.loads(line)['record'] for line in lines}
  assert {'run', 'bandwidth', 'attention', 'step', 'generate'} <= kinds
