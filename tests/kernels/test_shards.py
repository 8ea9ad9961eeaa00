"""Partial attention of devices, merged by a sum and by an exchange of heads.

`jax.vmap` with the name of an axis stands for the devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvjax.kernels import shards

DEVICES, ROWS, HEADS, TOKENS, WIDTH = 4, 2, 8, 3, 5


def parts(seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns outputs `[n, B, N, T, E]` and log-sum-exps `[n, B, N, T]`."""
  rng = np.random.default_rng(seed)
  lead = DEVICES, ROWS, HEADS, TOKENS
  out = rng.normal(size=(*lead, WIDTH)).astype(np.float32)
  lse = (scale * rng.normal(size=lead)).astype(np.float32)
  return out, lse


def merged(out: np.ndarray, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The definition, in float64: sum_i exp(lse_i - lse) out_i."""
  out, lse = out.astype(np.float64), lse.astype(np.float64)
  top = np.max(lse, axis=0)
  with np.errstate(invalid='ignore', divide='ignore'):
    weights = np.where(lse == -np.inf, 0, np.exp(lse - top))
    total = weights.sum(0)
    shares = np.where(weights[..., None] == 0, 0, weights[..., None] * out)
    mean = np.where(total[..., None] == 0, 0, shares.sum(0) / total[..., None])
    return mean, np.where(total == 0, -np.inf, top + np.log(total))


def on_devices(merge, out, lse):
  return jax.vmap(lambda *x: merge(*x, ('c',)), axis_name='c')(out, lse)


def assert_merged(merge, out, lse):
  found, found_lse = map(np.asarray, on_devices(merge, out, lse))
  wanted, wanted_lse = merged(out, lse)
  if merge is shards._exchange_heads:  # device i has the i-th share of heads
    found = np.concatenate(list(found), axis=1)[None]
    found_lse = np.concatenate(list(found_lse), axis=1)[None]
  for each, each_lse in zip(found, found_lse, strict=True):
    np.testing.assert_allclose(each, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(each_lse, wanted_lse, rtol=1e-5, atol=1e-6)


MERGES = shards._sum_shares, shards._exchange_heads


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('scale', [1.0, 200.0])
def test_merges_as_the_definition(merge, scale):
  """Also where exp of a log-sum-exp is no finite number."""
  assert_merged(merge, *parts(0, scale))


@pytest.mark.parametrize('merge', MERGES)
def test_a_device_that_saw_nothing_has_no_weight(merge):
  """Its output is undefined. Where none saw anything the result is 0."""
  out, lse = parts(1, 1.0)
  lse[1], out[1] = -np.inf, np.nan
  lse[:, 0, 3], out[:, 0, 3] = -np.inf, np.nan
  assert_merged(merge, out, lse)


def test_streams_of_queries_are_joined_and_separated():
  latent, rotary = jnp.ones((2, 3)), jnp.zeros((2, 1))
  joined = jnp.concatenate([latent, rotary], axis=-1)
  found = shards._separate(joined, {'latent': 3, 'rotary': 1})
  np.testing.assert_array_equal(found['latent'], latent)
  np.testing.assert_array_equal(found['rotary'], rotary)
