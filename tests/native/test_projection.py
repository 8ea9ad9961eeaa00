"""The projection of few rows against float64, and what is left to plain JAX."""

import functools
import os
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.context import using_kernel
from kvjax.kernels import blockwise
from kvjax.kernels.matmul import choose, cpu_library, xla
from kvjax.layers.int8_weight import CodedWeight
from kvjax.layers.linear import matmul
from kvjax.native import load


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
  monkeypatch.setattr(cpu_library, 'SMALL', 0)


def draw(rows, channels, width, dtype='float32'):
  rng = np.random.default_rng(rows + channels)
  sizes = (rows, width), (channels, width)
  return [jnp.asarray(rng.standard_normal(s), dtype) for s in sizes]


# One row, two and four have each a tile; 19 and 37 channels end in a tile that
# reaches back; 2100 channels of 64 are more than one thread takes.
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 13])
@pytest.mark.parametrize('channels, width', [(19, 48), (37, 16), (2100, 64)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_products_are_those_of_float64(rows, channels, width, dtype):
  check(rows, channels, width, dtype)


@pytest.mark.parametrize(
  'rows, channels, width',
  [(35, 19, 48), (35, 37, 1040), (35, 300, 528), (131, 40, 1040)],
)
def test_many_rows_of_eight_bit_weights(rows, channels, width):
  """Tall tiles and what they leave, panels not full, rows shared by threads."""
  check(rows, channels, width, 'int8')


def check(rows, channels, width, dtype):
  x, weight = draw(rows, channels, width, dtype.replace('int8', 'float32'))
  scale = None
  if dtype == 'int8':
    coded = kvjax.quantize({'up': weight})['up']
    weight, scale = coded.codes, coded.scale
  found = cpu_library.multiply(x, weight, scale, None, choose.multiply_plainly)
  want = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
  want *= 1 if scale is None else np.asarray(scale, np.float64)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(('rows', 'dtype'), [(1, 'float32'), (5, 'bfloat16')])
def test_weights_of_four_bits(rows, dtype):
  """By the library and in plain JAX, as NumPy decodes ggml's q4_1."""
  x, weight = draw(rows, 37, 192)
  x = x.astype(dtype) * jnp.asarray(np.logspace(-3, 3, 192), dtype)[None]
  coded = kvjax.quantize({'up': weight}, bits=4)['up']
  packed = np.asarray(coded.codes).reshape(37, 6, 16)
  codes = np.concatenate([packed & 15, packed >> 4], axis=-1)
  decoded = codes * np.float64(coded.scale)[..., None]
  decoded = (decoded + np.float64(coded.zero)[..., None]).reshape(37, 192)
  assert (
    np.abs(decoded - np.asarray(weight)).max() < np.float64(coded.scale).max()
  )
  np.testing.assert_allclose(coded[5:7], decoded[5:7], rtol=1e-6)
  want = np.asarray(x, np.float64) @ decoded.T
  assert not cpu_library.refuses(x, coded.codes)
  found = matmul(x, coded)
  # Rows have 16 bits in a block, and no other block takes any of them.
  scale = np.abs(np.asarray(x, np.float64))[:, None] * np.abs(decoded)
  assert (np.abs(found - want) < 3e-5 * scale.sum(-1)).all()
  with using_kernel('blockwise'):
    plain = matmul(x, coded)
  tolerance = 1e-2 if dtype == 'bfloat16' else 1e-5
  np.testing.assert_allclose(plain, want, atol=tolerance * np.abs(want).max())


def test_float32_rows_are_not_rounded_to_a_narrow_weight():
  x, weight = draw(3, 32, 48)
  narrow = weight.astype(jnp.bfloat16)
  want = np.asarray(x, np.float64) @ np.asarray(narrow, np.float64).T
  np.testing.assert_allclose(matmul(x, narrow), want, atol=1e-4)


@pytest.mark.parametrize(
  'rows, channels, width, dtypes, reason',
  [
    (9, 32, 48, ('float32', 'float32'), '9 rows'),
    (2, 15, 48, ('float32', 'float32'), '16 or more output channels'),
    (2, 32, 40, ('float32', 'float32'), 'a multiple of 16'),
    (2, 32, 48, ('bfloat16', 'bfloat16'), 'rows of bfloat16'),
    (2, 32, 48, ('float32', 'float16'), 'weights of float16'),
    (33, 32, 48, ('bfloat16', 'int8'), '33 rows; it takes at most 32'),
  ],
)
def test_what_it_does_not_take_is_plain(rows, channels, width, dtypes, reason):
  x, weight = draw(rows, channels, width)
  x, weight = x.astype(dtypes[0]), weight.astype(dtypes[1])
  assert reason in cpu_library.refuses(x, weight)
  if dtypes[1] == 'int8':
    assert not cpu_library.refuses(x[1:], weight)
    weight = CodedWeight(weight, jnp.ones(channels), 'float32')
  assert np.isfinite(matmul(x, weight)).all()


def test_a_coded_weight_is_widened_block_by_block(monkeypatch):
  """The last block reaches back; the whole weight never is floats at once."""
  monkeypatch.setattr(xla, 'BLOCK', 9 * 128)
  monkeypatch.setattr(xla, 'SMALL', 0)
  x, weight = draw(5, 37, 128)
  coded = kvjax.quantize({'up': weight})['up']
  decoded = coded.codes.astype('float32') * coded.scale[:, None]
  with using_kernel('blockwise'):
    compiled = jax.jit(matmul).lower(x, coded).compile()
    gradient = jax.grad(lambda x: matmul(x, coded).sum())(x)
  np.testing.assert_allclose(compiled(x, coded), x @ decoded.T, atol=1e-4)
  want = np.broadcast_to(decoded.sum(0), x.shape)
  np.testing.assert_allclose(gradient, want, atol=1e-4)
  temporaries = kvjax.memory.measure(compiled).temporaries
  assert temporaries < decoded.nbytes / 2, temporaries


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_hundreds_of_rows_are_multiplied_rows_first(dtype):
  """Their result needs no transpose; that of fewer rows is transposed."""
  x, weight = draw(xla.ROWS_FIRST, 33, 48, dtype)
  compiled = jax.jit(matmul).lower(x, weight).compile()
  want = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
  np.testing.assert_allclose(compiled(x, weight), want, atol=1e-4)
  assert f'f32[33,{xla.ROWS_FIRST}]' not in compiled.as_text()
  fewer = jax.jit(matmul).lower(x[1:], weight).compile()
  assert f'f32[33,{xla.ROWS_FIRST - 1}]' in fewer.as_text()


def test_plain_jax_can_be_requested():
  x, weight = draw(2, 32, 48)
  with using_kernel('blockwise'):
    assert cpu_library.refuses(x, weight)
  with using_kernel(blockwise.KERNEL):
    assert cpu_library.refuses(x, weight)
    with using_kernel('ffi'):
      assert not cpu_library.refuses(x, weight)
  with mock.patch.dict(os.environ, KVJAX_KERNEL='blockwise'):
    assert not cpu_library.refuses(x, weight)
  assert not cpu_library.refuses(x, weight)


def test_derivatives_and_vmap_are_those_of_the_plain_form():
  x, weight = draw(2, 32, 48)
  several = jnp.stack([x, 2 * x])
  loss = lambda x, weight: jnp.sum(matmul(x, weight) ** 2)
  found = [jax.grad(loss, (0, 1))(x, weight)]
  found += [jax.vmap(matmul, (0, None))(several, weight)]
  found += [jax.vmap(matmul, (None, 0))(x, jnp.stack([weight, -weight]))]
  with using_kernel('blockwise'):
    want = [jax.grad(loss, (0, 1))(x, weight)]
    want += [jax.vmap(matmul, (0, None))(several, weight)]
    want += [jax.vmap(matmul, (None, 0))(x, jnp.stack([weight, -weight]))]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, found, want)


def test_rows_under_vmap_are_one_product():
  x, weight = draw(3, 32, 48)
  weight = weight.astype(jnp.bfloat16)
  program = jax.jit(jax.vmap(matmul, (0, None))).lower(x[:, None], weight)
  text = program.as_text()
  assert text.count(load.PROJECT) == 1 and 'tensor<4x48xf32>' in text


@pytest.mark.parametrize('kernel', ['ffi', 'blockwise'])
def test_a_step_uses_it_unless_plain_jax_is_asked_for(kernel):
  layer = kvjax.Layer(kvjax.Grouped(2, 1, 16), kvjax.MLP(32))
  config = kvjax.ModelConfig(53, 32, (layer,))
  params = kvjax.init_params(config, jax.random.key(0))
  cache = kvjax.init_cache(config, 2, 16)
  step = lambda p, c, t: kvjax.decode_step(config, p, c, t, kernel=kernel)
  text = jax.jit(step).lower(params, cache, jnp.zeros(2, jnp.int32)).as_text()
  assert (load.PROJECT in text) == (kernel == 'ffi')


def test_the_library_refuses_what_the_package_never_sends():
  """A call of one's own with other shapes or types ends before any read."""
  x, weight = draw(4, 32, 16)
  for rows, other, channels, said in (
    (x[:3], weight, 32, 'do not fit'),
    (x, weight[:, :8], 32, 'do not fit'),
    (x, weight[:7], 7, 'do not fit'),  # fewer than any processor's sums
    (x, weight.astype(jnp.float16), 32, 'no such weights'),
  ):
    out = jax.ShapeDtypeStruct((len(rows), channels), jnp.float32)
    call = jax.ffi.ffi_call(load.PROJECT, out)
    with pytest.raises(Exception, match=said):
      jax.block_until_ready(call(rows, other, jnp.zeros(0)))
