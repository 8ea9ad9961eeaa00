"""Candidates of the GPU benchmark, without a GPU: interpreted and lowered."""

import dataclasses
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from experiments.measuring.candidates import (
  cudnn,
  mosaic_gpu_inside,
  rows_first,
)
from experiments.measuring.candidates.mosaic_gpu_inside import in_cluster
from kvjax import kernels
from kvjax.kernels.hopper import interpreter, tuning
from kvjax.layers.linear import matmul
from tests.attention import oracle
from tests.kernels.drawn import draw_ragged, lowered_step, view_of, wide

RULE = kvjax.Scoring(0.125)
WINDOW = dataclasses.replace(RULE, visibility=kvjax.Visibility(window=6))


@pytest.mark.parametrize(
  ('slots', 'lengths', 'rule', 'sees'),
  [
    (17, (0, 1, 13, 17), RULE, {}),
    (41, (0, 1, 13, 41), RULE, {}),
    (
      41,
      (0, 1, 13, 41),
      WINDOW,
      {'sees': lambda query, slot: query - 6 < slot <= query},
    ),
  ],
  ids=['full_cache', 'old_slots', 'window'],
)
def test_cudnn_answers_ragged_rows_with_poison(slots, lengths, rule, sees):
  # A short row has its padding first; rows of 0 and 1 tokens are such rows.
  q, k, v, positions, slot_positions = draw_ragged(
    (2, 3, 17), (*lengths, 17), slots
  )
  positions[-1, 5] = 2  # between its neighbours, which are at 4 and 6

  @jax.jit
  def run(q, positions, k, v):
    view = view_of(k, v, slot_positions)
    return kernels.attend_view(
      {'key': q}, positions, view, rule, kernel=cudnn.KERNEL
    )

  with kernels.interpreted():
    out, lse = (np.asarray(x) for x in run(q, positions, k, v))
  assert np.all(np.isnan(out[-1, :, :, [4, 5, 6]]))
  assert not np.any(out[0])
  q, positions, k, v, slot_positions = (
    x[:-1] for x in (q, positions, k, v, slot_positions)
  )
  q, k, v = wide(q, k, v)
  want = oracle.attention(
    q, positions, k, v, slot_positions, scale=0.125, **sees
  )
  np.testing.assert_allclose(out[:-1], want[0], atol=1e-5)
  np.testing.assert_allclose(lse[:-1], want[1], atol=1e-5)


def test_cudnn_reads_a_prompt_in_two_pieces_of_ragged_rows():
  layer = kvjax.Layer(
    kvjax.Grouped(4, 2, 16, rotary=kvjax.Rotary(16)), kvjax.MLP(24)
  )
  config = kvjax.ModelConfig(53, 32, (layer,), dtype='bfloat16')
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (3, 7), 0, 53)
  logits_of = {}
  for kernel in (cudnn.KERNEL, 'blockwise'):
    cache = kvjax.init_cache(config, 3, 19)
    with kernels.interpreted():
      logits_of[kernel] = []
      for lengths in ((7, 3, 1), (0, 5, 7)):
        logits, cache = kvjax.prefill(
          config, params, cache, tokens, np.array(lengths), kernel=kernel
        )
        logits_of[kernel].append(logits)
  chex.assert_trees_all_close(*logits_of.values(), atol=0.02)


def test_cudnn_names_what_it_cannot_serve():
  q, k, v, _, slot_positions = draw_ragged((1, 2, 3), (5,), 8)
  view, plain = view_of(k, v, slot_positions), {'key': q}
  assert cudnn.refuses(plain, view, RULE) == ''
  seen = lambda **rules: dataclasses.replace(
    RULE, visibility=kvjax.Visibility(**rules)
  )
  unordered = view_of(k, v, slot_positions, False)
  wider = view_of(k.astype('float32'), v, slot_positions)
  narrow = view_of(k, v[..., :32], slot_positions)
  large = jnp.tile(k, 4)
  for words, queries, view_of_case, rule in (
    ('add up latent, rotary', {'latent': q, 'rotary': q}, view, RULE),
    ('one token a row', {'key': q[:, :, :, :1]}, view, RULE),
    ('soft-cap', plain, view, kvjax.Scoring(1.0, softcap=5.0)),
    ('additive bias', plain, view, kvjax.Scoring(1.0, bias=lambda *_: 0)),
    ('causal=False.* not causal', plain, view, seen(causal=False)),
    ('sink_tokens=2', plain, view, seen(window=3, sink_tokens=2)),
    ('chunk=4', plain, view, seen(chunk=4)),
    ('order of positions', plain, unordered, RULE),
    ('order of positions', plain, view.only(last=3), RULE),
    ('not both stored', plain, wider, RULE),
    ('widths 64, 32', plain, narrow, RULE),
    ('up to 128', plain, view_of(large, large, slot_positions), RULE),
  ):
    assert re.search(words, cudnn.refuses(queries, view_of_case, rule))


def test_cudnn_is_chosen_by_its_record_alone_and_only_where_it_runs():
  q, k, v, _, slot_positions = draw_ragged((1, 2, 3), (5,), 8)
  queries, view = {'key': q}, view_of(k, v, slot_positions)
  choose = lambda **options: kernels.choose(queries, view, RULE, **options)
  with pytest.raises(ValueError, match='where a GPU is, not on cpu'):
    choose(kernel=cudnn.KERNEL)
  with pytest.raises(ValueError, match="kernel='cudnn' must be one of ffi"):
    choose(kernel='cudnn')
  with kernels.targeting('gpu'):
    assert choose() == 'blockwise'
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      reasons = kernels.available([cudnn.KERNEL])
      assert 'no cuDNN attention' in reasons['cudnn']
  with kernels.interpreted():
    assert choose(kernel=cudnn.KERNEL) == 'cudnn'
    with pytest.raises(ValueError, match='block=4 is a size for the bloc'):
      choose(kernel=cudnn.KERNEL, block=4)


def test_the_calls_of_cudnn_as_they_are_lowered():
  q, k, v, positions, slot_positions = draw_ragged((2, 3, 5), (5, 9), 11)
  room = cudnn.importlib.import_module(cudnn._ROOM)

  def lowered(rule):
    run = lambda q, k, v, positions: cudnn.attend(
      {'key': q}, positions, view_of(k, v, slot_positions), rule
    )
    traced = jax.jit(run).trace(q, k, v, jnp.asarray(positions))
    return traced.lower(lowering_platforms=('cuda',)).as_text()

  with (
    mock.patch.object(room, 'check_cudnn_version', lambda: 91000),
    mock.patch.object(room, 'check_compute_capability', lambda _: True),
  ):
    plain, windowed = lowered(RULE), lowered(WINDOW)
  calls = [
    re.findall(
      r'@__cudnn\$fmhaSoftmax\(.*"mask_type": "(\w+)".*'
      r'"sliding_window_length": (\d+)',
      text.replace(r'\22', '"'),
    )
    for text in (plain, windowed)
  ]
  assert calls[0] == [('PADDING_CAUSAL', '0'), ('PADDING', '0')]
  assert calls[1] == [('PADDING_CAUSAL', '6')]
  # Heads first, as a cache stores them: nothing is transposed.
  orders = re.findall(
    r'stablehlo.transpose .*dims = \[(.*?)\]', plain + windowed
  )
  assert set(orders) == {'0, 1, 2, 3'}


def test_a_cluster_merges_its_splits_in_one_launch():
  q, k, v, positions, slot_positions = draw_ragged((1, 3, 1), (0, 1, 141), 192)
  table = [(tuning.Problem(3, 192, 64, 64), tuning.Tiles(64, 2, 2))]

  def attend():
    # Queries wider than the keys, and no tile: the kernel reads them as given.
    return mosaic_gpu_inside.attend(
      {'key': q.astype('float32')},
      jnp.asarray(positions),
      view_of(k, v, slot_positions),
      RULE,
    )

  with kernels.interpreted(detect_races=True), tuning.using(table):
    if not mosaic_gpu_inside.has_clusters():
      with pytest.raises(ValueError, match='clusters of thread blocks'):
        attend()
      return
    out, lse = attend()
  want = oracle.attention(
    *wide(q), positions, *wide(k, v), slot_positions, scale=0.125
  )
  np.testing.assert_allclose(out, want[0], atol=2e-3)
  np.testing.assert_allclose(lse, want[1], atol=1e-5)
  assert not interpreter.races_found()
  assert not np.any(out[0])


def test_a_cluster_has_as_many_blocks_as_a_device_launches():
  problem = tuning.Problem(8, 4096, 128, 128)
  swept = tuning.Tiles(128, 2, 16)
  assert in_cluster(problem, swept, 4) == tuning.Tiles(128, 2, 8)
  with pytest.raises(ValueError, match='widths 256 and 192'):
    in_cluster(tuning.Problem(8, 4096, 256, 192), swept, 4)
  wide_keys = tuning.Problem(8, 4096, 256, 128)
  assert in_cluster(wide_keys, tuning.Tiles(64, 2, 8), 2).stages == 2
  with pytest.raises(ValueError, match='widths 256 and 128'):
    in_cluster(wide_keys, tuning.Tiles(64, 2, 8), 4)


def test_a_step_merges_inside_one_launch_without_a_tile():
  text = lowered_step('gpu', mosaic_gpu_inside.KERNEL)
  assert text.count('@mosaic_gpu') == 1
  assert 'stablehlo.pad' not in text


def test_rows_first_is_the_same_product_without_a_transpose():
  rows, weight = jnp.arange(6.0).reshape(2, 3), jnp.arange(15.0).reshape(5, 3)
  with kernels.targeting('gpu'):
    assert 'transpose' in jax.jit(matmul).lower(rows, weight).as_text()
    candidate = jax.jit(rows_first.matmul)
    assert 'transpose' not in candidate.lower(rows, weight).as_text()
  np.testing.assert_array_equal(candidate(rows, weight), rows @ weight.T)
