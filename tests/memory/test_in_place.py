"""Which decode steps update their cache in place, and what others move."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from kvjax import memory
from tests.compiler import as_users_do
from tests.memory.steps import (
  arguments,
  block_loop,
  decayed_by_results,
  dequantized,
  generation,
  good,
  of,
  old_value_read,
  one_dot,
  one_hot,
  one_hot_of_results,
  paged,
  paged_arguments,
  pages_first,
  pages_first_arguments,
  quantized,
  quantized_arguments,
  read_one_step_late,
  scan_carry,
  scan_xs_ys,
  scatter,
  shifted,
  slots_first,
  slots_first_arguments,
  stacked,
  unrolled,
  update,
  widened,
)

# The package's `in_place` is the function; this is its module.
IN_PLACE = importlib.import_module('kvjax.memory.compiled.updates')


def compiled(step, *args, donate='cache'):
  names = [
    name for name in inspect.signature(step).parameters if name == donate
  ]
  return as_users_do(jax.jit(step, donate_argnames=names).lower(*args))


@pytest.mark.parametrize(
  'step, args',
  [
    pytest.param(good, arguments(B=1, K=1), id='blocks_1_1'),
    pytest.param(good, arguments(B=1, K=2), id='blocks_1_2'),
    pytest.param(good, arguments(B=2, K=1), id='blocks_2_1'),
    pytest.param(good, arguments(B=3, K=2), id='blocks_3_2'),
    pytest.param(good, arguments(B=4, K=1), id='block_is_one_row'),
    pytest.param(good, arguments(S=1024), id='half_the_leaf'),
    pytest.param(generation, arguments(), id='generation'),
    pytest.param(unrolled(one_hot, block_loop), arguments(), id='one_hot'),
    pytest.param(
      unrolled(update, one_dot), arguments(), id='one_dot_full_axes'
    ),
    pytest.param(quantized, quantized_arguments(), id='weights_beside_scales'),
    pytest.param(paged, paged_arguments(K=1), id='paged_1'),
    pytest.param(paged, paged_arguments(), id='paged_2'),
    pytest.param(pages_first, pages_first_arguments(), id='pages_first'),
  ],
)
def test_passes(step, args):
  program, leaves = compiled(step, *args), jax.tree.leaves(args[0])
  memory.assert_in_place(program, 'cache')
  verdict = memory.in_place(program, 'cache')
  assert verdict.leaves == verdict.aliased
  assert len(verdict.leaves) == len(leaves)
  # The stable fields agree: there is no room for copies of all leaves.
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
  found = memory.measure(program)
  assert found.alias == sum(sizes) and found.temporaries < sum(sizes)


@pytest.mark.parametrize(
  'kind, step, args',
  [
    pytest.param('copy', scan_xs_ys, stacked(), id='scan_xs_ys'),
    pytest.param('slice', scan_carry, stacked(), id='scan_carry'),
    pytest.param(
      'copy', unrolled(update, one_dot), arguments(K=1), id='unit_heads'
    ),
    pytest.param(
      'copy', unrolled(update, one_dot), arguments(B=1), id='unit_batch'
    ),
    pytest.param(
      'copy', unrolled(update, one_dot), arguments(B=1, K=1), id='unit_both'
    ),
    pytest.param(
      'relayout', slots_first, slots_first_arguments(), id='slots_first'
    ),
    pytest.param(
      'upcast',
      unrolled(scatter, widened),
      arguments(dtype=jnp.bfloat16),
      id='widened',
    ),
    pytest.param(
      'upcast', dequantized, quantized_arguments(), id='dequantized'
    ),
    pytest.param(
      'copy', unrolled(shifted, block_loop), arguments(), id='shifted'
    ),
    pytest.param('copy', old_value_read, arguments(L=1), id='old_value_read'),
  ],
)
def test_names_what_moves(kind, step, args):
  program = compiled(step, *args)
  found = memory.in_place(program, 'cache')
  # The alias table shows nothing wrong in any of them.
  assert found.aliased == found.leaves
  assert found.bytes[kind] > 0, found
  largest = next(f for f in found.findings if f.kind == kind)
  with pytest.raises(memory.InPlaceError) as error:
    memory.assert_in_place(program, 'cache')
  assert f'{kind} of {largest.leaf}' in str(error.value)
  assert f'{largest.bytes:,} bytes, by {largest.opcode}' in str(error.value)
  assert memory.measure(program).temporaries >= largest.bytes


def test_a_scan_with_the_cache_as_xs_and_ys_copies_every_leaf():
  args = stacked()
  found = memory.in_place(compiled(scan_xs_ys, *args), 'cache')
  copies = [f for f in found.findings if f.kind == 'copy']
  assert {f.leaf for f in copies} == {'cache[0]', 'cache[1]'}
  assert {f.shape for f in copies} == {args[0][0].shape}


def test_a_stacked_carry_slices_layers_and_copies_none():
  (leaf, _), *_ = args = stacked()
  found = memory.in_place(compiled(scan_carry, *args), 'cache')
  assert found.bytes['copy'] == 0, found
  layer = leaf.size * 4 // leaf.shape[0]
  assert {f.bytes for f in found.findings} == {layer}
  assert {f.leaf for f in found.findings} == {'cache[0]', 'cache[1]'}


def test_a_leaf_written_by_arithmetic_is_followed():
  args = arguments(dtype=jnp.bfloat16)
  found = memory.in_place(compiled(one_hot_of_results, *args), 'cache')
  moved = {f.leaf for f in found.findings}
  assert moved == set(found.leaves) and len(moved) == 4, found


def test_a_leaf_decayed_where_it_lies_is_followed():
  cache, *rest = slots_first_arguments()
  program = compiled(decayed_by_results, cache * 2, *rest)
  found = memory.in_place(program, 'cache')
  assert {f.leaf for f in found.findings} == set(found.leaves), found


def test_a_leaf_that_comes_round_by_a_loop_is_followed():
  ((leaf, _), _), *rest = arguments(dtype=jnp.bfloat16)
  program = compiled(read_one_step_late, leaf, *rest)
  assert memory.in_place(program, 'cache').bytes['upcast'] > 0


def test_a_bfloat16_dot_on_cpu():
  args = arguments(dtype=jnp.bfloat16)
  program = compiled(unrolled(update, one_dot), *args)
  found = memory.in_place(program, 'cache')
  if jax.__version_info__ < (0, 12):  # XLA:CPU had no bfloat16 dot
    assert found.bytes['upcast'] > 0, found
    assert all(f.dtype == 'f32' for f in found.findings)
  else:
    leaf = args[0][0][0].size * 2
    assert found.ok == (memory.measure(program).temporaries < leaf), found


def test_not_donated():
  program = compiled(good, *arguments(), donate='nothing')
  found = memory.in_place(program, 'cache')
  assert found.aliased == () and len(found.leaves) == 4
  assert found.bytes['copy'] == 4 * 2 * 2 * 2048 * 64 * 4
  with pytest.raises(AssertionError, match=r'not aliased: cache\[0\]\[0\]'):
    memory.assert_in_place(program, 'cache')


def test_one_leaf_that_changes_dtype_is_not_aliased():
  def step(cache, q, new, position):
    q, ((k, v),) = good(cache, q, new, position)
    return q, ((k, v.astype(jnp.bfloat16)),)

  found = memory.in_place(compiled(step, *arguments(L=1)), 'cache')
  assert found.aliased == ('cache[0][0]',)
  assert not found.ok


@pytest.mark.parametrize('B', [1, 2])
def test_flax_linen_attention_lays_its_cache_out_anew(B):
  module = nn.MultiHeadDotProductAttention(
    num_heads=4, qkv_features=256, decode=True
  )

  def step(cache, params, x):
    state = {'params': params, 'cache': cache}
    out, state = module.apply(state, x, mutable=['cache'])
    return out, state['cache']

  init = lambda x: module.init(jax.random.key(0), x)
  state = jax.eval_shape(init, of(B, 1024, 256))
  args = state['cache'], state['params'], of(B, 1, 256)
  found = memory.in_place(compiled(step, *args), 'cache')
  assert found.aliased == found.leaves and len(found.leaves) == 3
  moved = {f.leaf: f.bytes for f in found.findings if f.kind == 'relayout'}
  size = B * 1024 * 256 * 4
  assert moved == {
    "cache['cached_key']": size,
    "cache['cached_value']": size,
  }
  where = found.findings[0].op_name
  assert 'MultiHeadDotProductAttention' in where, where


def test_a_path_judges_part_of_an_argument():
  program = compiled(unrolled(scatter, block_loop), *arguments())
  found = memory.in_place(program, 'cache[1]')
  assert found.leaves == ('cache[1][0]', 'cache[1][1]') and found.ok


def test_an_unknown_name_gets_the_nearest():
  program = compiled(good, *arguments())
  with pytest.raises(ValueError, match="did you mean 'cache'"):
    memory.assert_in_place(program, 'cach')


def test_a_function_is_not_a_program():
  with pytest.raises(TypeError, match='lower'):
    memory.assert_in_place(jax.jit(good), 'cache')  # pyright: ignore


def test_leaves_too_small_to_judge_are_refused():
  with pytest.raises(ValueError, match='min_bytes=10000000'):
    program = compiled(good, *arguments())
    memory.assert_in_place(program, 'cache', min_bytes=10_000_000)


@pytest.mark.parametrize(
  'step, args, donate, ok',
  [
    pytest.param(good, arguments(), 'cache', True, id='good'),
    pytest.param(scan_xs_ys, stacked(), 'cache', False, id='copies'),
    pytest.param(good, arguments(), 'nothing', False, id='kept'),
  ],
)
def test_stable_fields_decide_when_buffers_cannot_be_read(
  step, args, donate, ok
):
  program = compiled(step, *args, donate=donate)
  unreadable = memory.EncodingError('another encoding')
  with mock.patch.object(IN_PLACE, 'read', side_effect=unreadable):
    with pytest.warns(UserWarning, match='another encoding'):
      assert memory.in_place(program, 'cache').ok == ok
