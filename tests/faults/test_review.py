"""Inputs that a second reader of the doors found unclear or wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kvjax
from kvjax.checkpoints import load_checkpoint
from kvjax.decoding.sampling import row_keys
from kvjax.text import load_tokenizer, make_batch, read_prompts
from tests.checkpoints.writing import altered
from tests.faults.one_layer import (
  CONFIG,
  ID,
  ONE,
  PARAMS,
  TWO,
  V,
  fed,
  feed,
  generate,
  new_cache,
  step,
)

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
    (None, 'row is of type NoneType: give lists of ids'),
    ([1], 'row is of type int: give lists of ids'),
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


def sampled(logits=ROW, keys=None, sampling=None):
  keys = row_keys(0, 1) if keys is None else keys
  return kvjax.sample(jnp.asarray(logits), keys, sampling or kvjax.Sampling())


LAYER = CONFIG.layers[0]
WHOLE = PARAMS | {'embedding': jnp.zeros(PARAMS['embedding'].shape, jnp.int32)}
ARGUMENTS = {
  'options_of_prefill': (
    lambda: kvjax.prefill(CONFIG, PARAMS, new_cache(), ONE, options={}),
    r'options is of type dict: give kvjax\.DecodeOptions\(',
  ),
  'options_of_extend': (
    lambda: feed(ONE, options=None),
    'options is of type NoneType',
  ),
  'options_of_a_step': (lambda: step(ID, options=3), 'options is of type int'),
  'no_sampling': (
    lambda: kvjax.sample(jnp.asarray(ROW), row_keys(0, 1), None),
    r'sampling is of type NoneType: give kvjax\.Sampling',
  ),
  'logits_of_no_token': (lambda: sampled(ROW[:, :0]), r'shape \[1, 0\]: give'),
  'a_key_for_all_rows': (
    lambda: sampled(keys=jax.random.key(0)),
    r'keys has shape \[\]; it must be an array of random keys \[1\]',
  ),
  'no_caches': (lambda: kvjax.concat(None), 'caches is of type NoneType: give'),
  'a_cache_and_no_list': (
    lambda: kvjax.concat(new_cache()),
    'caches is of type Cache: give a list',
  ),
  'none_for_a_cache': (lambda: kvjax.concat([None]), 'cache is of type None'),
  'layers_of_a_number': (
    lambda: dataclasses.replace(CONFIG, layers=3),
    'ModelConfig layers=3 must be Layer',
  ),
  'a_layer_of_none': (
    lambda: dataclasses.replace(CONFIG, layers=[LAYER, None]),
    'ModelConfig layers=.*None.* must be Layer',
  ),
  'a_norm_of_text': (
    lambda: dataclasses.replace(CONFIG, norm='rms'),
    "norm='rms' must be Norm",
  ),
  'encoder_layers_of_text': (
    lambda: kvjax.Encoder(('x',)),
    r"Encoder layers=\('x',\) must be Layer",
  ),
  'attention_of_none': (
    lambda: kvjax.Layer(None, kvjax.MLP(11)),
    'Layer attention=None must be Variant',
  ),
  'attention_of_text': (
    lambda: kvjax.Layer('x', kvjax.MLP(11)),
    "Layer attention='x' must be Variant",
  ),
  'mlp_of_a_number': (
    lambda: kvjax.Layer(LAYER.attention, 11),
    'Layer mlp=11 must be MLP or Experts',
  ),
  'a_key_of_zero': (
    lambda: kvjax.init_params(CONFIG, 0),
    'key is of type int; it must be an array of random keys',
  ),
  'a_batch_of_keys': (
    lambda: kvjax.init_params(CONFIG, row_keys(0, 2)),
    r'key has shape \[2\]; it must be an array of random keys \[\]',
  ),
  'whole_params': (
    lambda: feed(ONE, params=WHOLE),
    'params embedding has dtype int32; it must be an array of floating',
  ),
  'whole_params_of_forward': (
    lambda: kvjax.forward(CONFIG, WHOLE, ONE),
    'params embedding has dtype int32',
  ),
  'params_of_text_in_forward': (
    lambda: kvjax.forward(CONFIG, PARAMS | {'embedding': 'x'}, ONE),
    r'params have embedding \[\]',
  ),
  'params_of_text': (
    lambda: feed(ONE, params=PARAMS | {'embedding': 'x'}),
    r'params have embedding \[\]; the config makes it \[29, 24\]',
  ),
  'stream': (lambda: generate(stream=3), 'stream=3 must be a function, or No'),
  'progress': (lambda: generate(progress=3), 'progress=3 must be a function'),
  'log_probs': (
    lambda: generate(log_probs='x'),
    "log_probs='x' must be True or False",
  ),
  'donate_of_one': (lambda: generate(donate=1), 'donate=1 must be True or Fal'),
  'donate_of_a_step': (lambda: step(ID, donate=1), 'donate=1 must be True or'),
  'donate_of_take': (
    lambda: kvjax.take(new_cache(), [0], donate='no'),
    "donate='no' must be True or False",
  ),
  'save_nowhere': (
    lambda: kvjax.save_cache(None, new_cache(), CONFIG, PARAMS),
    'path=None must be a text or a pathlib.Path',
  ),
  'save_nothing': (
    lambda: kvjax.save_cache('x', None, CONFIG, PARAMS),
    'cache is of type NoneType',
  ),
  'save_for_no_model': (
    lambda: kvjax.save_cache('x', new_cache(), None, PARAMS),
    'config is of type NoneType',
  ),
  'save_for_no_params': (
    lambda: kvjax.save_cache('x', new_cache(), CONFIG, None),
    'params is of type NoneType',
  ),
  'load_nowhere': (
    lambda: kvjax.load_cache(None, CONFIG, PARAMS),
    'path=None must be a text',
  ),
  'a_path_with_a_nul': (
    lambda: kvjax.load_cache('a\0b', CONFIG, PARAMS),
    r"path='a\\x00b' must be a text or a pathlib.Path, without a NUL",
  ),
  'a_checkpoint_of_none': (lambda: load_checkpoint(None), 'path=None must be'),
  'a_tokenizer_of_none': (lambda: load_tokenizer(None), 'path=None must be'),
  'prompts_of_none': (lambda: read_prompts(None), 'path=None must be'),
}


@pytest.mark.parametrize('name', ARGUMENTS)
def test_arguments(name):
  call, message = ARGUMENTS[name]
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize('wrong', [9, -1])
@pytest.mark.parametrize('padding', ['right', 'left'])
def test_impossible_lengths_of_a_trace(wrong, padding):
  """The device alone knows them: the row counts as one that overflows."""

  @jax.jit
  def run(cache, lengths):
    return feed(TWO, cache, lengths=lengths, padding=padding)

  logits, cache = run(fed(2)[1], jnp.asarray([wrong, 2]))
  want, _ = feed(TWO, fed(2)[1], lengths=[0, 2], padding=padding)
  assert jax.device_get(cache.overflow).tolist() == [True, False]
  assert jax.device_get(cache.length).tolist() == [3, 5]
  assert np.isnan(logits[0]).all()
  np.testing.assert_array_equal(logits[1], want[1])


def test_a_tokenizer_of_no_directory(tmp_path):
  with pytest.raises(FileNotFoundError, match='/absent is no directory: give'):
    load_tokenizer(tmp_path / 'absent')


def test_a_negative_seed():
  """It is a seed like others: the unsigned number of the same bits."""
  for seed in (-1, np.asarray([-1, 7])):
    same = np.asarray(seed).astype(np.uint32)
    keys = row_keys(seed, 2), row_keys(same, 2)
    np.testing.assert_array_equal(*map(jax.random.key_data, keys))
