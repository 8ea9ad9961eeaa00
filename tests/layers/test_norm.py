"""Norms and projections against NumPy."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.context import targeting
from kvjax.layers.linear import init_linear, linear, matmul


@pytest.mark.parametrize(
  'transform', [jax.jit, lambda call: call], ids=['with_jit', 'without_jit']
)
@pytest.mark.parametrize('centered', [True, False])
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_formula(centered, offset, transform):
  norm = kvjax.Norm(1e-3, centered=centered, bias=centered, offset=offset)
  x = jax.random.normal(jax.random.key(0), (2, 3, 7))
  params = {'weight': jnp.arange(7.0), 'bias': jnp.arange(7.0) / 9}
  got = transform(lambda p, x: norm(p, x))(params, x)
  y = np.asarray(x, np.float64)
  y = y - y.mean(-1, keepdims=True) * centered
  y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3)
  y = y * (np.arange(7.0) + offset) + np.arange(7.0) / 9 * centered
  np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-6)


def test_identity_and_golden():
  norm = kvjax.Norm(0.0, offset=1.0)
  x = jnp.asarray([[3.0, -4.0]])
  got = norm(norm.init(2, jnp.float32), x)
  np.testing.assert_allclose(got, [[3 / math.sqrt(12.5), -4 / math.sqrt(12.5)]])


@pytest.mark.parametrize('centered', [True, False])
def test_without_a_weight(centered, maybe_jit):
  norm = kvjax.Norm(1e-3, centered=centered, weighted=False)
  assert norm.init(7, jnp.float32) == {} and norm.num_params(7) == 0
  x = jax.random.normal(jax.random.key(0), (2, 3, 7)).astype(jnp.bfloat16)
  y = np.asarray(x, np.float64)
  y = y - y.mean(-1, keepdims=True) * centered
  y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3)
  for dtype, limit in (('float32', 1e-5), ('bfloat16', 2**-8)):
    got = maybe_jit(lambda x: norm({}, x))(x.astype(dtype))
    assert got.dtype == dtype
    got = np.asarray(got, np.float64)
    np.testing.assert_allclose(got, y, rtol=limit, atol=limit)


@pytest.mark.parametrize('more', [{'bias': True}, {'offset': 1.0}])
def test_without_a_weight_there_is_no_bias_and_no_offset(more):
  with pytest.raises(ValueError, match='weighted=False with bias=.*Leave both'):
    kvjax.Norm(weighted=False, **more)
  with pytest.raises(ValueError, match='weighted=0 must be True or False'):
    kvjax.Norm(weighted=0)


def test_narrow_input_is_normalised_wide():
  """bfloat16 squares of 300 and 1 would lose the 1 altogether."""
  norm = kvjax.Norm()
  x = jnp.asarray([[300.0] + [1.0] * 512], jnp.bfloat16)
  got = norm(norm.init(513, jnp.bfloat16), x)
  assert got.dtype == jnp.bfloat16
  rms = math.sqrt((300**2 + 512) / 513)
  np.testing.assert_allclose(float(got[0, 1]), 1 / rms, rtol=2**-8)


def test_a_weight_a_head():
  norm = kvjax.Norm()
  x = jax.random.normal(jax.random.key(0), (2, 3, 5, 7))
  weight = jax.random.normal(jax.random.key(1), (3, 1, 7))
  got = norm({'weight': weight}, x)
  want = norm(norm.init(7, jnp.float32), x) * weight[None]
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_weights_are_out_by_in(batch, dtype, platform):
  params = init_linear(jax.random.key(0), 'up', 5, 7, bias=True, dtype=dtype)
  chex.assert_shape(params['up'], (7, 5))
  params['up_bias'] = jnp.arange(7).astype(dtype)
  x = jax.random.normal(jax.random.key(1), (batch, 1, 5)).astype(dtype)
  with targeting(platform):
    got = jax.jit(lambda p, x: linear(p, 'up', x))(params, x)
  assert got.dtype == x.dtype
  wide = lambda a: np.asarray(a, np.float64)
  want = wide(x) @ wide(params['up']).T + np.arange(7)
  limit = 1e-5 if dtype == 'float32' else 2e-2
  np.testing.assert_allclose(wide(got), want, rtol=limit, atol=limit)


def test_a_single_row_on_a_gpu_under_transformations():
  weight = jax.random.normal(jax.random.key(0), (7, 5))
  rows = jax.random.normal(jax.random.key(1), (3, 1, 5))
  with targeting('gpu'):
    got = jax.vmap(matmul, (0, None))(rows, weight)
    slope = jax.grad(lambda w: matmul(rows[0], w).sum())(weight)
  np.testing.assert_allclose(got[:, 0], rows[:, 0] @ weight.T, atol=1e-5)
  want = jnp.broadcast_to(rows[0], (7, 5))
  np.testing.assert_allclose(slope, want, atol=1e-6)


def test_no_rows():
  weight = jnp.ones((300, 512))
  coded = kvjax.quantize({'up': weight})['up']
  for either in (weight, coded):
    chex.assert_shape(matmul(jnp.zeros((0, 512)), either), (0, 300))
