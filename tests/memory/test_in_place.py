"""Which decode steps update their cache in place, and what others move."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from absl.testing import parameterized
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


class InPlace(parameterized.TestCase):
  @parameterized.named_parameters(
    ('blocks_1_1', good, arguments(B=1, K=1)),
    ('blocks_1_2', good, arguments(B=1, K=2)),
    ('blocks_2_1', good, arguments(B=2, K=1)),
    ('blocks_3_2', good, arguments(B=3, K=2)),
    ('block_is_one_row', good, arguments(B=4, K=1)),  # same size as leaf[0]
    ('half_the_leaf', good, arguments(S=1024)),
    ('generation', generation, arguments()),
    ('one_hot', unrolled(one_hot, block_loop), arguments()),
    ('one_dot_full_axes', unrolled(update, one_dot), arguments()),
    ('weights_beside_scales', quantized, quantized_arguments()),
    ('paged_1', paged, paged_arguments(K=1)),
    ('paged_2', paged, paged_arguments()),
    ('pages_first', pages_first, pages_first_arguments()),
  )
  def test_passes(self, step, args):
    program, leaves = compiled(step, *args), jax.tree.leaves(args[0])
    memory.assert_in_place(program, 'cache')
    verdict = memory.in_place(program, 'cache')
    assert verdict.leaves == verdict.aliased
    assert len(verdict.leaves) == len(leaves)
    # The stable fields agree: there is no room for copies of all leaves.
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
    found = memory.measure(program)
    assert found.alias == sum(sizes) and found.temporaries < sum(sizes)

  @parameterized.named_parameters(
    ('scan_xs_ys', 'copy', scan_xs_ys, stacked()),
    ('scan_carry', 'slice', scan_carry, stacked()),
    ('unit_heads', 'copy', unrolled(update, one_dot), arguments(K=1)),
    ('unit_batch', 'copy', unrolled(update, one_dot), arguments(B=1)),
    ('unit_both', 'copy', unrolled(update, one_dot), arguments(B=1, K=1)),
    ('slots_first', 'relayout', slots_first, slots_first_arguments()),
    (
      'widened', 'upcast',
      unrolled(scatter, widened), arguments(dtype=jnp.bfloat16),
    ),
    ('dequantized', 'upcast', dequantized, quantized_arguments()),
    ('shifted', 'copy', unrolled(shifted, block_loop), arguments()),
    ('old_value_read', 'copy', old_value_read, arguments(L=1)),
  )  # fmt: skip
  def test_names_what_moves(self, kind, step, args):
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

  def test_a_scan_with_the_cache_as_xs_and_ys_copies_every_leaf(self):
    args = stacked()
    found = memory.in_place(compiled(scan_xs_ys, *args), 'cache')
    copies = [f for f in found.findings if f.kind == 'copy']
    assert {f.leaf for f in copies} == {'cache[0]', 'cache[1]'}
    assert {f.shape for f in copies} == {args[0][0].shape}

  def test_a_stacked_carry_slices_layers_and_copies_none(self):
    (leaf, _), *_ = args = stacked()
    found = memory.in_place(compiled(scan_carry, *args), 'cache')
    assert found.bytes['copy'] == 0, found
    layer = leaf.size * 4 // leaf.shape[0]
    assert {f.bytes for f in found.findings} == {layer}
    assert {f.leaf for f in found.findings} == {'cache[0]', 'cache[1]'}

  def test_a_leaf_written_by_arithmetic_is_followed(self):
    args = arguments(dtype=jnp.bfloat16)
    found = memory.in_place(compiled(one_hot_of_results, *args), 'cache')
    moved = {f.leaf for f in found.findings}
    assert moved == set(found.leaves) and len(moved) == 4, found

  def test_a_leaf_decayed_where_it_lies_is_followed(self):
    cache, *rest = slots_first_arguments()
    program = compiled(decayed_by_results, cache * 2, *rest)
    found = memory.in_place(program, 'cache')
    assert {f.leaf for f in found.findings} == set(found.leaves), found

  def test_a_leaf_that_comes_round_by_a_loop_is_followed(self):
    ((leaf, _), _), *rest = arguments(dtype=jnp.bfloat16)
    program = compiled(read_one_step_late, leaf, *rest)
    assert memory.in_place(program, 'cache').bytes['upcast'] > 0

  def test_a_bfloat16_dot_on_cpu(self):
    args = arguments(dtype=jnp.bfloat16)
    program = compiled(unrolled(update, one_dot), *args)
    found = memory.in_place(program, 'cache')
    if jax.__version_info__ < (0, 12):  # XLA:CPU had no bfloat16 dot
      assert found.bytes['upcast'] > 0, found
      assert all(f.dtype == 'f32' for f in found.findings)
    else:
      leaf = args[0][0][0].size * 2
      assert found.ok == (memory.measure(program).temporaries < leaf), found

  def test_not_donated(self):
    program = compiled(good, *arguments(), donate='nothing')
    found = memory.in_place(program, 'cache')
    assert found.aliased == () and len(found.leaves) == 4
    assert found.bytes['copy'] == 4 * 2 * 2 * 2048 * 64 * 4
    with pytest.raises(AssertionError, match=r'not aliased: cache\[0\]\[0\]'):
      memory.assert_in_place(program, 'cache')

  def test_one_leaf_that_changes_dtype_is_not_aliased(self):
    def step(cache, q, new, position):
      q, ((k, v),) = good(cache, q, new, position)
      return q, ((k, v.astype(jnp.bfloat16)),)

    found = memory.in_place(compiled(step, *arguments(L=1)), 'cache')
    assert found.aliased == ('cache[0][0]',)
    assert not found.ok

  @parameterized.parameters(1, 2)
  def test_flax_linen_attention_lays_its_cache_out_anew(self, B):
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


class Arguments(parameterized.TestCase):
  def test_a_path_judges_part_of_an_argument(self):
    program = compiled(unrolled(scatter, block_loop), *arguments())
    found = memory.in_place(program, 'cache[1]')
    assert found.leaves == ('cache[1][0]', 'cache[1][1]') and found.ok

  def test_an_unknown_name_gets_the_nearest(self):
    program = compiled(good, *arguments())
    with pytest.raises(ValueError, match="did you mean 'cache'"):
      memory.assert_in_place(program, 'cach')

  def test_a_function_is_not_a_program(self):
    with pytest.raises(TypeError, match='lower'):
      memory.assert_in_place(jax.jit(good), 'cache')  # pyright: ignore

  def test_leaves_too_small_to_judge_are_refused(self):
    with pytest.raises(ValueError, match='min_bytes=10000000'):
      program = compiled(good, *arguments())
      memory.assert_in_place(program, 'cache', min_bytes=10_000_000)

  @parameterized.named_parameters(
    ('good', good, arguments(), 'cache', True),
    ('copies', scan_xs_ys, stacked(), 'cache', False),
    ('kept', good, arguments(), 'nothing', False),
  )
  def test_stable_fields_decide_when_buffers_cannot_be_read(
    self, step, args, donate, ok
  ):
    program = compiled(step, *args, donate=donate)
    unreadable = memory.EncodingError('another encoding')
    with mock.patch.object(IN_PLACE, 'read', side_effect=unreadable):
      with pytest.warns(UserWarning, match='another encoding'):
        assert memory.in_place(program, 'cache').ok == ok
