"""The Hopper kernel without a GPU: interpreted, and lowered for one."""

import functools
import json
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax import kernels
from kvjax.kernels.hopper import (
  interpreter,
  launch,
  mosaic_gpu,
  spans,
  tiling,
  tuning,
)
from tests.attention import oracle
from tests.kernels.drawn import draw_ragged, lowered_step, view_of, wide

SEES = {
  'window': ({'window': 70}, lambda p, s: p - 70 < s <= p),
  'window_and_sinks': (
    {'window': 30, 'sink_tokens': 2},
    lambda p, s: s <= p and (s > p - 30 or s < 2),
  ),
  'chunk': ({'chunk': 40}, lambda p, s: s <= p and p // 40 == s // 40),
  'all': ({'causal': False}, lambda p, s: True),
}


def check(answer, drawn, tolerance, **rules):
  q, k, v, positions, slot_positions = drawn
  want = oracle.attention(
    *wide(q),
    positions,
    *wide(k, v),
    slot_positions,
    **({'scale': 0.125} | rules),
  )
  np.testing.assert_allclose(answer[0], want[0], atol=tolerance)
  np.testing.assert_allclose(answer[1], want[1], atol=1e-5)
  assert not interpreter.races_found()


def test_lengths_with_poison_in_a_ring_that_wraps():
  drawn = draw_ragged((1, 3, 1), (0, 1, 141), 192)
  q, k, v, positions, slot_positions = drawn
  with kernels.interpreted(detect_races=True):
    answer = launch.attend(
      {'key': q},
      jnp.asarray(positions),
      view_of(k, v, slot_positions),
      kvjax.Scoring(0.125),
      splits=1,
      stages=2,
    )
  check(answer, drawn, tolerance=2e-3)
  assert not np.any(answer[0][0])


def test_rules_and_splits_where_slots_have_no_order():
  drawn = draw_ragged(
    (2, 3, 2), (101,), 128, 'float16', roll=13, value_width=128
  )
  q, k, v, positions, slot_positions = drawn
  rule, sees = SEES['window']
  sinks = np.random.default_rng(1).standard_normal((2, 3), np.float32)
  scoring = kvjax.Scoring(
    0.125,
    softcap=0.7,
    visibility=kvjax.Visibility(**rule),
    sinks=jnp.asarray(sinks),
  )
  with kernels.interpreted(detect_races=True):
    answer = kvjax.attend(
      {'key': q},
      jnp.asarray(positions),
      (view_of(k, v, slot_positions, ordered=False),),
      scoring,
      kernel='mosaic_gpu',
    )
  check(answer, drawn, tolerance=5e-4, sees=sees, softcap=0.7, sinks=sinks)


@pytest.mark.parametrize('ordered', [True, False], ids=['ordered', 'rolled'])
@pytest.mark.parametrize('name', SEES)
def test_every_slot_that_is_seen_is_read(name, ordered):
  rule, sees = SEES[name]
  *_, positions, slot_positions = draw_ragged(
    (1, 1, 3), (0, 1, 77, 128), 128, roll=13 * (not ordered)
  )
  rows = spans.spans(
    jnp.asarray(positions),
    jnp.asarray(slot_positions)[:, None],
    128,
    kvjax.Visibility(**rule),
    ordered,
  )
  for row, (first, end, full) in enumerate(np.asarray(rows)):
    query_positions = [p for p in positions[row] if p >= 0]
    needed = [
      slot
      for slot, position in enumerate(slot_positions[row])
      if position >= 0 and any(sees(p, position) for p in query_positions)
    ]
    assert all(first <= slot < end for slot in needed)
    assert np.all(slot_positions[row][first : min(end, full)] >= 0)
    if ordered and needed and name != 'all':
      first_needed = needed[0] if 'window_and' not in name else 0
      assert (first, end) == (first_needed, needed[-1] + 1)
    if not query_positions:
      assert first == end


def test_splits_fill_the_cores():
  assert tiling.choose_splits(64, 512) == 2
  assert tiling.choose_splits(8, 512) == 16  # one wave of 128
  assert tiling.choose_splits(72, 512) == 5
  assert tiling.choose_splits(8, 3) == 3
  assert tiling.choose_splits(128, 512) == 1
  assert tiling.choose_splits(1, 0) == 1
  assert tiling.choose_splits(0, 4) == 1


def test_stages_fit_in_shared_memory():
  assert tiling.choose_stages(128, 128) == 4
  assert tiling.choose_stages(256, 256) < 2


def test_committed_tables_can_be_launched():
  files = sorted(tuning.FOLDER.glob('*.json'))
  assert files
  for file in files:
    entries = json.loads(file.read_text('utf-8'))
    assert tuning.load(entries)
    for problem, tiles in tuning.load(entries):
      most = problem.reckoned(tiles.block).stages
      assert problem.slots % tiles.block == 0, file
      assert 2 <= tiles.stages <= most, file
      assert 1 <= tiles.splits <= problem.slots // tiles.block, file


def test_a_table_may_say_where_its_splits_were_merged():
  problem = tuning.Problem(8, 4096, 128, 128)
  sizes = {'programs': 8, 'slots': 4096, 'width': 128, 'value_width': 128}
  tiles = {'block': 128, 'stages': 2, 'splits': 16}
  for merge, table in (
    ({}, ((problem, tuning.Tiles(128, 2, 16)),)),
    ({'merge': 'after'}, ((problem, tuning.Tiles(128, 2, 16)),)),
    ({'merge': 'inside'}, ()),  # tiles of a program that is not the kernel
  ):
    file = {'entries': [{'problem': sizes, 'tiles': tiles | merge}]}
    assert tuning.load(file) == table


def test_tiles_are_requested_ones_or_those_of_the_table():
  problem = tuning.Problem(8, 4096, 128, 128)
  swept = tuning.Tiles(128, 2, 16)
  with tuning.using([(problem, swept)]):
    assert tuning.choose_tiles(problem) == swept
    assert tuning.choose_tiles(problem, splits=3) == tuning.Tiles(128, 2, 3)
    other = tuning.choose_tiles(problem, block=64)
    assert other == problem.reckoned(64)


def refusal(queries=None, slots=128, scoring=None, **streams):
  q, k, v, _, slot_positions = draw_ragged((1, 2, 1), (5,), slots)
  streams = {'k': k, 'v': v} | streams
  view = view_of(streams['k'], streams['v'], slot_positions)
  return launch.refuses(
    queries or {'key': q}, view, scoring or kvjax.Scoring(0.125)
  )


def test_what_it_cannot_serve_is_named():
  wide_tile = jnp.zeros((1, 1, 33, 2, 64))
  narrow = jnp.zeros((1, 1, 128, 72), 'bfloat16')
  huge = jnp.zeros((1, 1, 128, 256), 'bfloat16')
  assert refusal() == ''
  for words, case in (
    ('66 query rows', {'queries': {'key': wide_tile}}),
    ('adds? up latent, rotary', {'queries': {'latent': 0, 'rotary': 0}}),
    ('100 slots', {'slots': 100}),
    ("'key' is not stored as bfloat16", {'k': jnp.zeros((1, 1, 128, 64))}),
    (r'widths \[64, 72\]', {'v': narrow}),
    ('shared memory', {'k': huge, 'v': huge}),
    ('additive bias', {'scoring': kvjax.Scoring(1.0, bias=lambda *_: 0)}),
  ):
    assert re.search(words, refusal(**case)), words


def hopper():
  """Returns patches under which this process seems to have a Hopper GPU."""
  devices = [mock.Mock(compute_capability='9.0', device_kind='none')]
  return (
    mock.patch.object(jax, 'default_backend', return_value='gpu'),
    mock.patch.object(jax, 'devices', return_value=devices),
  )


def test_a_hopper_gpu_chooses_it_where_it_serves():
  q, k, v, positions, slot_positions = draw_ragged((1, 2, 1), (5, 0), 128)
  queries, view = {'key': q}, view_of(k, v, slot_positions)
  positions, rule = jnp.asarray(positions), kvjax.Scoring(0.125)
  attend = functools.partial(kernels.attend_view, queries, positions, view)
  backend, devices = hopper()
  with kernels.targeting('gpu'):
    with backend, devices:
      assert kernels.choose(queries, view, rule) == 'mosaic_gpu'
      biased = kvjax.Scoring(0.125, bias=lambda *_: 0)
      assert kernels.choose(queries, view, biased) == 'blockwise'
      traced = jax.jit(lambda: attend(rule)).trace()
    # The same program, lowered for another platform, goes without the kernel.
    answer = traced.lower(lowering_platforms=('cpu',)).compile()()
    want = attend(rule, kernel='blockwise')
  chex.assert_trees_all_close(answer, want, atol=1e-6)


@pytest.mark.parametrize(
  ('device', 'home'),
  [
    (mock.Mock(compute_capability='9.0'), True),
    (mock.Mock(compute_capability='8.0'), False),
    (mock.Mock(spec=()), False),
  ],
  ids=['hopper', 'ampere', 'unknown'],
)
def test_its_home_is_compute_capability_9(device, home):
  with (
    mock.patch.object(jax, 'default_backend', return_value='gpu'),
    mock.patch.object(jax, 'devices', return_value=[device]),
  ):
    assert mosaic_gpu.is_at_home() == home
    with kernels.targeting('tpu'):
      assert not mosaic_gpu.is_at_home()
  assert not mosaic_gpu.is_at_home()


def test_elsewhere_it_is_chosen_by_name_alone_and_only_where_it_runs():
  q, k, v, _, slot_positions = draw_ragged((1, 2, 1), (5,), 128)
  view, rule = view_of(k, v, slot_positions), kvjax.Scoring(0.125)
  choose = functools.partial(kernels.choose, {'key': q}, view, rule)
  with pytest.raises(ValueError, match='runs on a Hopper GPU, not on cpu'):
    choose(kernel='mosaic_gpu')
  with kernels.targeting('gpu'):
    assert choose() == 'blockwise'
    assert choose(kernel='mosaic_gpu') == 'mosaic_gpu'
    assert choose(kernel='mosaic_gpu', block=64) == 'mosaic_gpu'
    for block in 0, 32, 96, 256:  # of 128 slots
      with pytest.raises(ValueError, match=f'block={block} is no multiple'):
        choose(kernel='mosaic_gpu', block=block)
  with pytest.raises(ValueError, match="'cuda' must be one of cpu, gpu"):
    with kernels.targeting('cuda'):
      pass


@pytest.mark.parametrize('block', [None, 128], ids=['whole', 'loop'])
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_the_plain_step_for_absent_devices(platform, block):
  text = lowered_step(platform, 'blockwise', block=block)
  # Narrow products that accumulate wide, and a loop only where one is asked.
  assert re.search(
    r'dot_general.*xbf16>.*xbf16>\) -> tensor<3x2x\d+x2xf32>', text
  )
  assert ('stablehlo.while' in text) == (block is not None)


def test_the_kernel_in_a_step():
  text = lowered_step('gpu', 'mosaic_gpu')
  assert text.count('@mosaic_gpu') == 1
  assert 'stablehlo.while' not in text
  assert 'stablehlo.pad' in text  # a tile
