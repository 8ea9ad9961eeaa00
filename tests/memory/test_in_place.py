"""Decode steps that update their cache in place, and steps that do not."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from absl.testing import parameterized
from flax import linen as nn
from jax import lax

from kvjax import memory
from tests.compiler import as_users_do

# The package's `in_place` is the function; this is its module.
IN_PLACE = importlib.import_module('kvjax.memory.in_place')
BLOCK = 512


def of(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def compiled(step, *args, donate='cache'):
  names = [
    name for name in inspect.signature(step).parameters if name == donate
  ]
  return as_users_do(jax.jit(step, donate_argnames=names).lower(*args))


def arguments(B=2, K=2, S=2048, H=64, L=2, dtype=jnp.float32):
  leaf = of(B, K, S, H, dtype=dtype)
  query, new = of(B, K, 3, H, dtype=dtype), of(B, K, H, dtype=dtype)
  return ((leaf, leaf),) * L, query, new, of(dtype=jnp.int32)


def scatter(leaf, new, position):
  row = lambda slots, x: slots.at[position].set(x, mode='drop')
  return jax.vmap(jax.vmap(row))(leaf, new)


def update(leaf, new, position):
  return lax.dynamic_update_slice_in_dim(leaf, new[:, :, None], position, 2)


def block_of(leaf, i):
  return lax.dynamic_slice_in_dim(leaf, i * BLOCK, BLOCK, 2)


def block_loop(q, k, v, position):
  def body(i, out):
    s = jnp.einsum('BKGH,BKSH->BKGS', q, block_of(k, i))
    return out + jnp.einsum('BKGS,BKSH->BKGH', jnp.exp(s), block_of(v, i))

  return lax.fori_loop(0, position // BLOCK + 1, body, jnp.zeros_like(q))


def one_dot(q, k, v, position):
  del position
  p = jax.nn.softmax(jnp.einsum('BKGH,BKSH->BKGS', q, k), axis=-1)
  return jnp.einsum('BKGS,BKSH->BKGH', p, v)


def unrolled(write, read):
  """A step over per-layer leaves, layers unrolled in Python."""

  def step(cache, q, new, position):
    layers = []
    for k, v in cache:
      k, v = write(k, new, position), write(v, new, position)
      q = q + read(q, k, v, position)
      layers.append((k, v))
    return q, tuple(layers)

  return step


good = unrolled(scatter, block_loop)


def stacked(B=2, K=2, S=1024, H=64, L=5):
  _, q, new, position = arguments(B, K, S, H)
  return (of(L, B, K, S, H), of(L, B, K, S, H)), q, new, position


def scan_xs_ys(cache, q, new, position):
  def body(q, layer):
    k, v = (scatter(leaf, new, position) for leaf in layer)
    return q + block_loop(q, k, v, position), (k, v)

  return lax.scan(body, q, cache)


def scan_carry(cache, q, new, position):
  def body(carry, layer):
    q, k, v = carry
    at = (layer, 0, 0, position, 0)
    k = lax.dynamic_update_slice(k, new[None, :, :, None], at)
    v = lax.dynamic_update_slice(v, new[None, :, :, None], at)
    q = q + block_loop(q, k[layer], v[layer], position)
    return (q, k, v), None

  layers = jnp.arange(cache[0].shape[0])
  (q, k, v), _ = lax.scan(body, (q, *cache), layers)
  return q, (k, v)


def slots_first(cache, q, new, position):
  layers = []
  for k, v in cache:  # [B, S, K, H]
    k = lax.dynamic_update_slice_in_dim(k, new[:, None], position, 1)
    v = lax.dynamic_update_slice_in_dim(v, new[:, None], position, 1)
    p = jax.nn.softmax(jnp.einsum('BKGH,BSKH->BKGS', q, k), axis=-1)
    q = q + jnp.einsum('BKGS,BSKH->BKGH', p, v)
    layers.append((k, v))
  return q, tuple(layers)


def slots_first_arguments(B=2, K=3, S=1024, H=64):
  _, q, new, position = arguments(B, K, S, H)
  return ((of(B, S, K, H), of(B, S, K, H)),), q, new, position


def widened(q, k, v, position):
  wide = [x.astype(jnp.float32) for x in (q, k, v)]
  return block_loop(*wide, position).astype(q.dtype)


def shifted(leaf, new, position):
  del position
  return jnp.concatenate([leaf[:, :, 1:], new[:, :, None]], axis=2)


def one_hot(leaf, new, position):
  hot = (jnp.arange(leaf.shape[2]) == position).astype(leaf.dtype)
  hot = hot[None, None, :, None]
  return leaf * (1 - hot) + new[:, :, None] * hot


def old_value_read(cache, q, new, position):
  ((k, v),) = cache
  q, layers = good(cache, q, new, position)
  return q + k.sum(axis=2, keepdims=True) + v[:, :, :1], layers


def quantized(cache, q, new, position):
  """Full rows of scores beside a scale leaf of the same shape [B, K, S]."""
  codes, scale = cache
  codes = scatter(codes, new.astype(jnp.int8), position)
  ones = jnp.ones_like(scale[..., 0])
  scale = scatter(scale, ones, position)
  blocks = position // BLOCK + 1

  def score(i, s):
    block = block_of(codes, i).astype(jnp.float32)
    part = jnp.einsum('BKH,BKSH->BKS', q, block) * block_of(scale, i)
    return lax.dynamic_update_slice_in_dim(s, part, i * BLOCK, 2)

  def mix(i, out):
    block = block_of(codes, i).astype(jnp.float32)
    weights = block_of(p, i) * block_of(scale, i)
    return out + jnp.einsum('BKS,BKSH->BKH', weights, block)

  s = lax.fori_loop(0, blocks, score, jnp.zeros_like(scale))
  p = jax.nn.softmax(s, axis=-1)
  return lax.fori_loop(0, blocks, mix, jnp.zeros_like(q)), (codes, scale)


def dequantized(cache, q, new, position):
  codes, scale = cache
  codes = scatter(codes, new.astype(jnp.int8), position)
  k = codes.astype(jnp.float32) * scale[..., None]
  return block_loop(q[:, :, None], k, k, position), (codes, scale)


def quantized_arguments(B=2, K=2, S=4096, H=64):
  codes, scale = of(B, K, S, H, dtype=jnp.int8), of(B, K, S)
  return (codes, scale), of(B, K, H), of(B, K, H), of(dtype=jnp.int32)


def paged(cache, q, new, position, table):
  """Pools [K, pages, page, H]; four pages of every row at a time."""
  size, layers = cache[0][0].shape[2], []
  for k, v in cache:
    at = table[:, position // size], position % size
    k, v = (x.at[:, at[0], at[1]].set(new, mode='drop') for x in (k, v))

    def body(i, out, q=q, k=k, v=v):
      pages = lax.dynamic_slice_in_dim(table, 4 * i, 4, 1)
      s = jnp.einsum('BKGH,KBPSH->BKGPS', q, k[:, pages])
      return out + jnp.einsum('BKGPS,KBPSH->BKGH', jnp.exp(s), v[:, pages])

    trips = position // (4 * size) + 1
    q = q + lax.fori_loop(0, trips, body, jnp.zeros_like(q))
    layers.append((k, v))
  return q, tuple(layers)


def paged_arguments(B=2, K=2, pages=32, page=64, H=64):
  pool, table = of(K, pages, page, H), of(B, 16, dtype=jnp.int32)
  new, position = of(K, B, H), of(dtype=jnp.int32)
  return ((pool, pool),) * 2, of(B, K, 3, H), new, position, table


def pages_first(cache, q, new, position, table):
  """A pool [pages, page, K, H]; one page at a time, chosen by the table."""
  size = cache.shape[1]
  at = table[position // size], position % size
  cache = cache.at[at].set(new, mode='drop')

  def body(i, out):
    page = cache[table[i]]
    s = jnp.einsum('KH,SKH->KS', q, page)
    return out + jnp.einsum('KS,SKH->KH', s, page)

  trips = position // size + 1
  return lax.fori_loop(0, trips, body, jnp.zeros_like(q)), cache


def pages_first_arguments(K=2, H=64):
  table, position = of(32, dtype=jnp.int32), of(dtype=jnp.int32)
  return of(32, 64, K, H), of(K, H), of(K, H), position, table


def generation(cache, q, new, position):
  """Eight tokens on device, as `generate` runs them."""

  def body(carry, _):
    q, cache, position = carry
    q, cache = good(cache, q, new, position)
    return (q, cache, position + 1), q

  carry = q, cache, position
  (_, cache, _), out = lax.scan(body, carry, None, length=8)
  return out, cache


def one_hot_of_results(cache, q, new, position):
  """Writes by arithmetic what attention of the layer below computed."""
  layers = []
  for k, v in cache:
    k, v = (one_hot(leaf, new + q[:, :, 0], position) for leaf in (k, v))
    q = q + widened(q, k, v, position)
    layers.append((k, v))
  return q, tuple(layers)


def decayed_by_results(cache, q, new, position):
  """Leaves [B, S, K, H] that attention decays, and a dot lays out anew."""
  layers = []
  for k, v in cache:
    gate = jax.nn.sigmoid(q[:, None, :, 0])
    q, ((k, v),) = slots_first(((k * gate, v * gate),), q, new, position)
    layers.append((k, v))
  return q, tuple(layers)


def read_one_step_late(cache, q, new, position):
  """Reads in each step of a loop, widened, the leaf of the step before."""

  def body(i, carry):
    q, old, leaf = carry
    leaf = scatter(leaf, new, position + i)
    return q + widened(q, old, old, position), leaf, leaf

  carry = q, jnp.zeros_like(cache), cache
  q, _, cache = lax.fori_loop(0, 3, body, carry)
  return q, cache


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
