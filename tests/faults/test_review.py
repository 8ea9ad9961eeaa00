"""Inputs that a second reader of the doors found unclear or wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import load_checkpoint
from kvjax.decoding.sampling import row_keys
from kvjax.text import make_batch
from tests.checkpoints.writing import altered
from tests.faults.test_api import CONFIG, ONE, PARAMS, V, feed

ROW = np.where(np.arange(V) % 7, -np.inf, 0.0)[None]  # 0, 7, 14, 21 and 28


@pytest.mark.parametrize('filters', [{}, {'top_p': 0.9}, {'top_k': 20}])
def test_no_temperature_draws_what_a_mask_excludes(filters):
  """The reciprocal of 3e38 may be flushed to 0, and 0 * -inf is NaN."""
  sampling = kvjax.Sampling(3e38, **filters)
  masked = jnp.asarray(np.roll(ROW, 3, axis=1), jnp.float32)
  rows = jnp.repeat(masked, 64, axis=0)
  tokens, _ = kvjax.sample(rows, row_keys(0, 64), sampling)
  assert set(tokens.tolist()) == {2, 3, 10, 17, 24}


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([], 'rows hold no token'),
    ([[], []], 'rows hold no token'),
    ([[1.5]], r'has the token 1\.5'),
    ([[1], [True]], 'has the token True'),
    ([[-1]], 'has the token -1'),
    ([[2**40]], 'has the token 1099511627776'),
  ],
)
def test_rows_that_make_no_batch(rows, message):
  with pytest.raises(ValueError, match=message):
    make_batch(CONFIG, rows)


@pytest.mark.parametrize('shape', [(0, 2), (1, 0)])
def test_forward_of_nothing(shape):
  with pytest.raises(ValueError, match='at least one row of one id'):
    kvjax.forward(CONFIG, PARAMS, jnp.zeros(shape, jnp.int32))


def test_donate_is_a_flag():
  cache = kvjax.init_cache(CONFIG, 1, 8)
  with pytest.raises(ValueError, match="donate='no' must be True or False"):
    feed(ONE, cache, donate='no')
  _, cache = feed(ONE, cache)  # it is still alive
  assert jax.device_get(cache.length).tolist() == [3]


def test_a_shard_whose_name_no_file_can_have(tmp_path):
  path = altered(tmp_path, 'llama')
  (path / 'model.safetensors').unlink()
  index = {'weight_map': {'a': 'a' * 5000}}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(FileNotFoundError, match='no file of this directory'):
    load_checkpoint(path)


def test_a_dtype_of_scales_alone():
  """Every negative key would be stored as NaN."""
  with pytest.raises(ValueError, match='float8_e8m0fnu has no negative'):
    kvjax.init_cache(CONFIG, 1, 8, dtype='float8_e8m0fnu')
