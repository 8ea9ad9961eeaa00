"""Communication of layouts: calls by hand, and what others have published."""

import dataclasses
import json
import pathlib

import pytest

import kvjax
from experiments.scaling import checks, layout_tables
from experiments.scaling.communication import Call, machine
from experiments.scaling.layouts import (
  Layout,
  Workload,
  calls,
  device_bytes,
  layouts,
  step,
)
from kvjax import memory

LLAMA, DEEPSEEK = map(kvjax.load_config, ('llama-3-70b', 'deepseek-v3'))
NAMES = {
  'heads': Layout(model=8, context=2),
  'slots': Layout(model=8, context=2, split='slots'),
  'rows': Layout(model=8, context=2, split='rows'),
  'devices': Layout(data=16),
}


def one_layer(config):
  return dataclasses.replace(config, layers=config.layers[-1:])


@pytest.mark.parametrize(
  ('name', 'call', 'microseconds'),
  [
    ('8xh100', Call('', 'all-reduce', 4e6, 8), 19 + 7e6 / 250e3),
    ('8xh100', Call('', 'all-gather', 4e6, 4), 19 + 3e6 / 250e3),
    ('8xh100', Call('', 'reduce-scatter', 4e6, 2), 19 + 2e6 / 250e3),
    # Inside 7/8 of it; between, half of an eighth of it by each card.
    (
      '16xh100',
      Call('', 'all-gather', 4e6, 16),
      39 + 3.5e6 / 250e3 + 0.25e6 / 50e3,
    ),
    # An all-to-all has no part in common: half of it by each card.
    (
      '16xh100',
      Call('', 'all-to-all', 4e6, 16),
      39 + 3.5e6 / 250e3 + 2e6 / 50e3,
    ),
    ('v5e-16', Call('', 'all-reduce', 1.6e6, 16), 6 + 3e6 / 90e3),
  ],
)
def test_a_call_by_hand(name, call, microseconds):
  assert 1e6 * call.seconds(machine(name)) == pytest.approx(microseconds)


def test_calls_of_a_layer_by_hand():
  # 64 heads of 128 in 8 groups, 6 rows of width 8,192, 128,256 logits.
  work = Workload(one_layer(LLAMA), 6, 1024)
  ends = Call('embedding', 'all-reduce', 6 * 8192 * 2, 16)
  ends = ends, Call('logits', 'all-gather', 6 * 128_256 * 4, 16)
  sums = [
    Call(name, 'all-reduce', 6 * 8192 * 4, 16) for name in ('attention', 'mlp')
  ]
  extra = {
    'heads': [],
    'slots': [
      Call('queries', 'all-gather', 6 * 8 * 128 * 2, 2),
      Call('parts', 'all-to-all', 6 * 8 * 129 * 4, 2),
    ],
    'rows': [
      Call('queries', 'all-to-all', 6 * 4 * 128 * 2, 2),
      Call('outputs', 'all-to-all', 6 * 4 * 128 * 2, 2),
    ],
  }
  for name, more in extra.items():
    assert list(calls(work, NAMES[name])) == [ends[0], *more, *sums, ends[1]]
  assert list(calls(work, NAMES['devices'])) == []


def test_calls_of_experts_by_hand():
  work = Workload(one_layer(DEEPSEEK), 40, 1024)
  found = {
    experts: [
      (call.name, call.size, call.devices)
      for call in calls(work, Layout(2, 1, 8, 'slots', experts))
      if call.name not in ('embedding', 'logits', 'attention')
    ]
    for experts in ('', 'sum', 'exchange')
  }
  # 20 rows of a replica; all 128 heads read each part of the one latent.
  attention = [
    ('queries', 20 * 128 * 576 * 2, 8),
    ('parts', 20 * 128 * 513 * 4, 8),
  ]
  assert found[''] == [*attention, ('mlp', 20 * 7168 * 4, 8)]
  assert found['sum'] == [
    *attention,
    ('rows', 40 * 7168 * 2, 16),
    ('experts', 40 * 7168 * 4, 16),
  ]
  assert found['exchange'] == [  # 40 rows of 16 devices: 3 of the fullest
    *attention,
    ('dispatch', 3 * 8 * 7168, 16),
    ('combine', 3 * 8 * 7168 * 2, 16),
    ('mlp', 20 * 7168 * 4, 8),
  ]


def test_a_step_that_is_split_evenly_is_the_roofline():
  for config, name, count in ((LLAMA, '16xh200', 16), (DEEPSEEK, '8xh200', 8)):
    places, work = machine(name), Workload(config, 16, 4096, 1)
    bound = memory.roofline(
      config,
      batch_size=16,
      context=4096,
      device=places.device,
      num_devices=count,
      weight_bytes=1,
    )
    (layout,) = (x for x in layouts(work, places) if x.name == 'slots')
    local = step(work, layout, places).local
    # Projections to kv heads or latents are copied, too.
    assert bound.weights < local.weights < 1.1 * bound.weights
    same = dataclasses.replace(local, weights=bound.weights)
    assert dataclasses.astuple(same) == pytest.approx(
      dataclasses.astuple(bound)
    )


def test_bytes_of_a_device_by_hand():
  work = Workload(LLAMA, 16, 8192, weight_bytes=1, cache_bytes=1)
  elements = memory.plan(LLAMA, batch_size=1, capacity=8).params_bytes / 2
  kv = 80 * 2 * 1024 * 8192  # projections, split in 8 where others are in 16
  row = 80 * 2 * 8 * 128 * 8192
  for name, (params, cache) in {
    'heads': (elements / 16 + kv / 16, 16 * row / 8),
    'slots': (elements / 16 + kv / 16, 16 * row / 16),
    'rows': (elements / 16 + kv / 16, 16 * row / 16),
    'devices': (elements, row),
  }.items():
    sizes = device_bytes(work, NAMES[name])
    # Norms are whole on every device, and slots have positions.
    assert sizes == pytest.approx((params, cache), rel=1e-3), name


@pytest.mark.parametrize(
  ('config', 'name', 'batch', 'expected'),
  [
    (LLAMA, '8xh200', 1, ['heads']),
    (LLAMA, '16xh200', 2, ['heads', 'slots', 'rows', 'data 2, heads']),
    (LLAMA, '16xh200', 3, ['heads', 'slots']),
    (DEEPSEEK, '8xh200', 1, ['heads', 'slots']),
    (kvjax.load_config('smollm2-135m'), '8xh100', 8, ['data 8']),
  ],
)
def test_layouts_split_evenly(config, name, batch, expected):
  found = layouts(Workload(config, batch, 128), machine(name))
  assert [x.name for x in found] == expected


def test_replicas_win_across_nodes_and_slots_hold_what_heads_cannot():
  rows = layout_tables.rows(Workload(LLAMA, 16, 131_072), machine('16xh200'))
  assert rows[0]['layout'] == 'data 2, heads' and rows[0]['calls'] == 162
  assert rows[-1]['layout'] == 'data 16' and not rows[-1]['fits']
  assert layout_tables.verdict(rows).text.startswith('Best: data 2, heads, 16')
  work = Workload(DEEPSEEK, 8, 131_072, 1)
  fits = {
    row['layout']: row['fits']
    for row in layout_tables.rows(work, machine('8xh200'))
  }
  assert fits['slots'] and not fits['heads']
  rows = layout_tables.rows(work, machine('8xh100'))
  assert 'No layout fits' in layout_tables.verdict(rows).text


# The model's share of a published figure. Between nodes a call of 1 MB takes
# much longer than its latency and its bytes.
SHARES = {'all-reduce of 1,048,576 B over 16': (0.3, 0.5)}


def test_published_figures():
  rows, _ = checks.checks()
  assert len(rows) == 11
  for row in rows:
    low, high = SHARES.get(row['name'], (0.8, 1.05))
    assert low < row['model'] / row['published'] < high, row


def test_published_crossings():
  rows, _ = checks.crossings()
  assert [row['context'] for row in rows] == [2**n for n in range(15, 19)]
  for row in rows:
    assert row['low'] < row['model'] < 1.25 * row['high'], row
  assert all(row['model'] < row['high'] for row in rows[:-1])


def test_tiny_run(tmp_path, commands):
  flags = '--model=llama-3.2-1b', '--machine=8xh100', '--context=1024'
  ended = commands('scaling', *flags, '--batch=8', f'--workdir={tmp_path}')
  assert ended.code == 0, ended.err
  assert 'Best: data 8, ' in ended.out
  lines = (tmp_path / 'scaling.jsonl').read_text().splitlines()
  kinds = {json.loads(line)['record'] for line in lines}
  assert kinds == {'run', 'layout', 'check', 'crossing'}
  assert pathlib.Path(tmp_path, 'layouts.png').stat().st_size > 10_000


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--model=nope'], "Unknown model 'nope'"),
    (['--machine=9xh200'], "machine='9xh200' is unknown; known: 8xh100"),
    (['--batch=0'], 'batch=0 must be a positive integer'),
    (['--context=-1'], 'context=-1 must be a positive integer'),
    (['--weight_bytes=0'], '--weight_bytes=0'),
    (['--model=smollm2-135m', '--batch=3'], 'no layout splits 9 heads or bat'),
  ],
)
def test_bad_flags_end_in_one_line(flags, words, commands):
  ended = commands('scaling', '--model=llama-3-70b', *flags)
  assert ended.code == 2
  assert len(ended.err.strip().splitlines()) == 1 and words in ended.err


def test_a_machine_needs_a_model(commands):
  ended = commands('scaling', '--machine=8xh100')
  assert ended.code == 2 and 'add --model' in ended.err
