"""Codes of groups, against loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from tests.streams import numpy_codecs

X = np.random.default_rng(1).standard_normal((30, 96)).astype(np.float32)
X[3] *= 1e3
X[4] = 0
X[5] = 2.5
CASES = [(2, 16), (4, 32), (8, 96), (4, 1000)]


def read(codec, x):
  return np.asarray(
    jax.jit(lambda x: codec.decode(codec.encode(x, None)))(jnp.asarray(x))
  )


@pytest.mark.parametrize(('bits', 'group'), CASES)
@pytest.mark.parametrize('zero', [True, False])
def test_golden(bits, group, zero):
  rule = numpy_codecs.affine if zero else numpy_codecs.symmetric
  want = rule(X, bits, min(group, X.shape[1]))
  found = read(kvjax.Affine(bits, group, zero), X)
  np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)


def test_within_half_a_scale_of_its_own_group():
  """A large group costs a small one in the same token nothing."""
  x = X[:3].copy()
  x[:, :32] *= 1e4
  encoded = kvjax.Affine().encode(jnp.asarray(x), None)
  scale, zero = (np.float32(encoded[name]) for name in ('scale', 'zero'))
  groups = x.reshape(3, 3, 32)
  np.testing.assert_allclose(scale * 15, np.ptp(groups, axis=-1), rtol=1e-3)
  off = np.abs(read(kvjax.Affine(), x).reshape(groups.shape) - groups)
  assert (off <= (0.501 * scale + np.abs(zero) * 2**-10)[..., None]).all()
  assert encoded['scale'].dtype == encoded['zero'].dtype == jnp.float16
  assert encoded['codes'].dtype == jnp.uint8
  assert encoded['codes'].shape == (3, 48)


def test_numbers_beyond_float16_stay_finite():
  assert np.isfinite(read(kvjax.Affine(), X * 1e30)).all()


def leaves(codec, width):
  return codec.leaves(width, jnp.float32)


REFUSED = {
  'bits': (functools.partial(kvjax.Affine, 3), 'bits=3 must be 2, 4 or 8'),
  'no group': (functools.partial(kvjax.Affine, 4, 0), 'group=0 must be at'),
  'no flag': (functools.partial(kvjax.Affine, zero=1), 'True or False'),
  'groups': (
    lambda: leaves(kvjax.Affine(4, 32), 48),
    'groups of 32 do not divide .* 48 .*Give one of 1, 2, 3, 4, 6, .*24, 48',
  ),
  'bytes': (
    lambda: leaves(kvjax.Affine(2, 7), 7),
    'a byte has 4 codes, and a stream of 7 features is no multiple',
  ),
}


@pytest.mark.parametrize(('make', 'match'), REFUSED.values(), ids=REFUSED)
def test_refusals(make, match):
  with pytest.raises(ValueError, match=match):
    make()
