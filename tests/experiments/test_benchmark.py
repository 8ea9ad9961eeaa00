"""The benchmark end to end at tiny size, and what it must refuse to time."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from configs import benchmark_cpu
from experiments import launch
from experiments.benchmark import cache_kinds, check_config, tables
from experiments.benchmark.races import Run
from experiments.benchmark.sections import SECTIONS, measure_sections
from experiments.measuring import attention, clock, model, peers
from experiments.reporting import records
from experiments.reporting.writer import Writer
from kvjax.decoding.parse import parse_cache
from kvjax.kernels import available
from tests.experiments.commands import ROOT


def test_attention_is_checked_then_timed():
  case = attention.AttentionCase(2, 2, 3, 8, 40, 24, 'int8')
  results = clock.measure(case, clock.Pace(1))
  usable = {f'kvjax {name}' for name, why in available().items() if not why}
  assert set(results) == usable
  assert case.bytes == 2 * 2 * 2 * 24 * (8 + 4)
  for row in clock.rate(results, read=1e9):
    assert row['bytes'] == case.bytes
    assert row['of_floor'] == pytest.approx(row['bytes'] / row['seconds'] / 1e9)
    assert row['turns'] == 1


@pytest.mark.parametrize('filled', [40, 8])
def test_caches_rotate_as_far_as_their_memory_allows(filled, monkeypatch):
  case = attention.AttentionCase(2, 2, 3, 8, 40, filled, 'bfloat16')
  whole = 2 * 2 * 2 * 40 * 8 * 2  # bytes that a cache occupies
  monkeypatch.setattr(attention, 'MOST', 8 * whole)
  pace = clock.Pace(1, 4 * whole, ('blockwise',), together=3, alone=True)
  row = clock.measure(case, pace)['kvjax blockwise']
  copies = {40: 4, 8: 9}[filled]  # in calls of equal size: 2 2, 3 3 3
  assert row['rotated'] == copies * case.bytes


def test_copies_are_in_different_memory():
  first, second = attention.copied({'key': jnp.arange(6.0)}, 2)
  places = [x['key'].unsafe_buffer_pointer() for x in (first, second)]
  assert places[0] != places[1]
  assert (first['key'] == second['key']).all()


def test_a_slow_runner_takes_few_turns(monkeypatch):
  monkeypatch.setattr(clock, 'ENOUGH', 0.0)
  monkeypatch.setattr(clock, 'LONG', 0.0)
  calls = []
  rows = clock.race({'a': clock.Runner(lambda: calls.append(0), 1)}, 5)
  # An untimed turn precedes the first turn only.
  assert rows['a']['turns'] == clock.FEW and len(calls) == clock.FEW + 1


def test_a_wrong_runner_is_not_timed():
  wrong = clock.Runner(lambda: pytest.fail('it was timed'), 1, '', error=0.5)
  with pytest.raises(ValueError, match='computes something else'):
    clock.race({'wrong': wrong}, 1)


@pytest.mark.parametrize('name', ['ring:window=8', 'paged:page=8+int8'])
def test_a_kind_that_misplaces_tokens_is_not_timed(name, monkeypatch):
  kind, _ = parse_cache(name)
  place = type(kind).place

  def misplaced(self, book, length, positions):
    book, places = place(self, book, length, positions)
    return book, jax.tree.map(lambda x: x.at[..., -1].set(x[..., 0]), places)

  shape = benchmark_cpu.get_config('tiny').model
  case = cache_kinds.CacheCase(*model.build(shape), 2, 24, (name,))
  right = clock.measure(case, clock.Pace(1))[f'kvjax {name}']
  monkeypatch.setattr(type(kind), 'place', misplaced)
  wrong = clock.measure(case, clock.Pace(1))[f'kvjax {name}']
  assert right['error'] < 1e-6 and 'computes something' in wrong['skipped']


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
  shown = tables.compare([row], [row | {'seconds': 1.0}])
  assert shown.rows[0][-1] == 0.5
  with pytest.raises(ValueError, match='no row in common'):
    tables.compare([row], [row | {'batch': 2}])
  # Two runs in one file, whose models differ in their configs only.
  wide = {'record': 'run', 'config': {'model': {'dtype': 'bfloat16'}}}
  later = [row, wide, row | {'seconds': 3.0}, row | {'seconds': 4.0}]
  shown = tables.compare(later, later)
  assert [(r[1], r[3]) for r in shown.rows] == [
    ('model B1 8 float32', 2e3),
    ('model B1 8 bfloat16', 4e3),
  ]
  # Of two sweeps only the fastest cuts are compared.
  cut = row | {'record': 'sweep', 'name': 'cut'}
  shown = tables.compare([cut | {'best': True}], [cut, cut | {'best': True}])
  assert len(shown.rows) == 1


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('sections', (), 'name at least one'),
    ('repeats', 0, 'repeats=0 must be 1 or more'),
    ('kernels', ('fii',), "kernels: 'fii' is unknown; known: ffi"),
    ('models', ('big',), "'big' is no model of this config"),
    ('steps', ((8,),), r'steps: \(8,\) must be 2 whole numbers'),
    ('prompts', (0,), r'prompts: \[0\] must be a whole number above 0'),
    ('attention.dtypes', ('float64',), "'float64' is unknown"),
    ('latent', (8,), 'must be 6 whole numbers'),
    ('caches.names', ('heap',), "cache='heap'"),
    ('variants.names', ('mxa',), "variant='mxa' is unknown"),
    ('model.num_kv_heads', 3, 'not a multiple'),
    ('room', 7, 'room=7 is less than the 14 tokens'),
  ],
)
def test_what_cannot_be_measured_is_refused(field, value, words):
  config = benchmark_cpu.get_config()
  check_config.check(config, SECTIONS)
  with pytest.raises(ValueError, match=words):
    check_config.check(launch.override(config, {field: value}), SECTIONS)


def test_a_failure_is_named_and_the_others_are_timed():
  def fails():
    raise RuntimeError('no kernel\nfor this')

  good = clock.Runner(lambda: None, 1, '')
  entries = {
    'absent': fails,
    'good': lambda: good,
    'wrong': lambda: clock.Runner(lambda: None, 1, 'ffi', error=0.5),
  }
  runners, skipped = clock.enter(entries)
  assert list(runners) == ['good']
  assert skipped['absent'] == {'skipped': 'RuntimeError: no kernel'}
  rows = clock.rate(clock.race(runners, 1) | skipped, read=1.0)
  named = {row['name']: {'record': 'attention', **row} for row in rows}
  named['kvjax'] = named.pop('wrong') | {'name': 'kvjax'}
  assert tables.wrongs(list(named.values())) == ['attention  kvjax']
  shown, text = tables.section('All', list(named.values()))
  assert len(shown.rows) == 1 and 'absent (RuntimeError' in text.text


def test_an_interrupted_run_is_reported_and_ends(tmp_path, monkeypatch):
  def part(run):
    yield {'record': 'target', 'name': 'first'}
    raise KeyboardInterrupt

  monkeypatch.setitem(SECTIONS, 'target', ('Target', part))
  config = launch.override(
    benchmark_cpu.get_config(), {'sections': ('target', 'latent')}
  )
  run = Run(config, tmp_path, math.inf, {'read': 1.0}, None)
  start = Writer(tmp_path, 'benchmark', 'Speed')
  report, wrong = measure_sections(run, start)
  names = [row['name'] for row in records.read([start.lines])]
  assert names == ['first', 'the part']
  assert wrong == ['target  the part']
  assert report.blocks[0].text == 'Target ended: interrupted.'


def test_growth_by_arithmetic(tmp_path, commands):
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
  rows = [json.loads(line) for line in lines]
  wanted = 'run bandwidth attention latent layer step generate overhead caches'
  wanted += ' cold chunks'
  assert set(wanted.split()) <= {row['record'] for row in rows}
  assert ('torch' in rows[0]['peers']) == (not peers.missing('torch'))
  # The kernel is read off the program: it differs between the works.
  by = {(row['record'], row['name']): row for row in rows if 'kernel' in row}
  native = 'blockwise' if available()['ffi'] else 'ffi'
  assert by['prefill', 'kvjax']['kernel'] == native
  assert by['prefill', 'kvjax uncached']['kernel'] == 'blockwise'
  assert by['caches', 'kvjax paged:page=8']['kernel'] == native
  bounded = by['caches', 'kvjax bounded:budget=8,score=heavy_hitters+int8']
  assert bounded['kernel'] == native and bounded['error'] < 1e-5
  # Every process writes the same tokens, and only one of them compiles nothing.
  begun = {row['name']: row for row in rows if row['record'] == 'cold'}
  for name in [name for name in begun if name.startswith('kvjax')]:
    assert begun[name]['passed'] and begun[name]['equal'] == 4
    assert (
      0 < begun[name]['load'] < begun[name]['first'] < begun[name]['seconds']
    )
  assert len(begun) == 6
  chunked = [row for row in rows if row['record'] == 'chunks']
  assert [row['context'] for row in chunked] == [5, 20]
  assert all(row['error'] < 1e-5 and row['ratio'] > 0 for row in chunked)
  dense = by['caches', 'kvjax dense']
  longer = dense['seconds'] / bounded['seconds']
  assert bounded['ratios']['dense'] == longer
