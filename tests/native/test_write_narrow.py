"""Narrow stores: the library's write is the scatter, bit for bit, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvjax.caches import paged
from kvjax.caches.slots import _scatter, write_rows
from kvjax.context import targeting, using_kernel
from kvjax.native import load, write_narrow


def draw(heads, dtype='bfloat16'):
  rng = np.random.default_rng(heads)
  leaf, new = (
    jnp.asarray(rng.standard_normal((2, 3, n, 5)), dtype) for n in (7, 4)
  )
  # Four distinct slots a list, one of them beyond the store.
  slots = np.stack([rng.permutation(8)[:4] for _ in range(2 * heads)])
  slots[:, 1] = 7 + np.arange(2 * heads)
  return leaf, new, jnp.asarray(slots.reshape(2, heads, 4), jnp.int32)


@pytest.mark.parametrize('heads', [1, 3])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_write_is_the_scatter(heads, dtype):
  given = draw(heads, dtype)
  before = np.asarray(given[0])
  found = write_narrow.write(*given, _scatter)
  np.testing.assert_array_equal(found, _scatter(*given))
  with targeting('gpu'):
    np.testing.assert_array_equal(found, _scatter(*given))
  assert not np.array_equal(found, before)
  np.testing.assert_array_equal(given[0], before)
  several = [jnp.stack([x, x[::-1]]) for x in given]
  found = jax.vmap(lambda *x: write_narrow.write(*x, _scatter))(*several)
  np.testing.assert_array_equal(found, jax.vmap(_scatter)(*several))


def test_a_pool_is_written_where_its_pages_lie():
  leaf, new, _ = draw(1)
  pool, new = jnp.moveaxis(leaf, 0, 1), jnp.concatenate(new, axis=1)[None]
  slots = jnp.asarray([[[3, 14, 13, 7, -1, 6, 0, 9]]], jnp.int32)
  found = write_narrow.write(pool, new, slots, paged._scatter)
  flat = pool.reshape(1, 3, 14, 5)
  want = write_narrow.write(flat, new, slots, _scatter).reshape(pool.shape)
  np.testing.assert_array_equal(found, want)
  slots = slots.at[0, 0, 4].set(99)
  np.testing.assert_array_equal(found, paged._scatter(pool, new, slots))


def test_a_slot_that_is_none_is_written_nowhere():
  leaf, new, slots = draw(1)
  np.testing.assert_array_equal(
    write_narrow.write(leaf, new, jnp.full_like(slots, -1), _scatter), leaf
  )


@pytest.mark.parametrize('dtype', ['int4', 'uint4', 'float4_e2m1fn'])
def test_a_store_of_half_bytes_is_refused(dtype):
  leaf, new, slots = draw(1)
  narrow_leaf, narrow_new = leaf.astype(dtype), new.astype(dtype)
  assert write_narrow.refuses(narrow_leaf)
  with pytest.raises(jax.errors.JaxRuntimeError, match='no such store'):
    write_narrow._call(narrow_leaf, narrow_new, slots).block_until_ready()


def test_values_of_no_width_are_refused():
  ints = lambda *shape: jnp.zeros(shape, jnp.int32)
  floats = lambda *shape: jnp.zeros(shape, jnp.float32)
  rule = dict(causal=1, window=0, chunk=0, sink_tokens=0, first=0, last=-1)
  call = jax.ffi.ffi_call(
    load.DECODE,
    (
      jax.ShapeDtypeStruct((1, 1, 1, 1, 0), 'float32'),
      jax.ShapeDtypeStruct((1, 1, 1, 1), 'float32'),
    ),
  )
  key = floats(1, 1, 1, 1, 16), floats(1, 1, 8, 16), floats(0), floats(0)
  value = floats(1, 1, 8, 0), floats(0), floats(0)
  integers = {k: np.int32(v) for k, v in (rule | {'shared': -1}).items()}
  with pytest.raises(jax.errors.JaxRuntimeError, match='shapes do not fit'):
    out, _ = call(
      ints(1, 1),
      ints(1, 1, 8),
      jnp.full((), 8, jnp.int32),
      ints(0),
      *key,
      *value,
      scale=np.float32(1),
      softcap=np.float32(0),
      forms=np.asarray([0, 16, 0, 0, 1, 0], np.int32),
      **integers,
    )
    out.block_until_ready()


def test_a_donated_store_is_not_copied():
  leaf, new, slots = draw(3)
  write = lambda *x: write_narrow.write(*x, _scatter)
  compiled = jax.jit(write, donate_argnums=0).lower(leaf, new, slots).compile()
  measured = compiled.memory_analysis()
  assert measured.alias_size_in_bytes == leaf.nbytes
  assert measured.temp_size_in_bytes < leaf.nbytes


def test_derivatives_are_those_of_the_scatter():
  leaf, new, slots = (x for x in draw(1, 'float32'))
  loss = lambda write, new: jnp.sum(write(leaf, new, slots) ** 2)
  found = jax.grad(
    lambda x: loss(lambda *a: write_narrow.write(*a, _scatter), x)
  )(new)
  want = jax.grad(lambda x: loss(_scatter, x))(new)
  np.testing.assert_array_equal(found, want)


def test_it_is_chosen_where_xla_would_copy():
  old = jax.__version_info__ < (0, 11)
  leaf, new, slots = draw(1)
  text = jax.jit(write_rows).lower(leaf, new, slots).as_text()
  assert (load.WRITE in text) == old
  with using_kernel('blockwise'):
    assert write_narrow.refuses(leaf)
  assert write_narrow.refuses(leaf.astype(jnp.float32))
  assert write_narrow.refuses(leaf.astype(jnp.int8))
