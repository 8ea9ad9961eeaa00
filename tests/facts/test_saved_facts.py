"""Facts about caches on disk: what goes on exactly, and what is refused."""

import json

import jax
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import kvjax
from kvjax.checkpoints.prompt_cache.digest import DIGEST, UNSIGNED, sign
from kvjax.checkpoints.prompt_cache.save import KEY
from tests.contract.table import draw
from tests.facts import tiny

CONFIG = tiny.decoder(tiny.GQA, tiny.MLA)
PARAMS = draw(CONFIG, seed=0)
IDS = tiny.tokens(2, 11)
KINDS = tiny.KINDS | {
  'renumbered': kvjax.Sinks(sinks=2, window=5, renumber=True),
  'mixed': [kvjax.Ring(window=5, slack=2), kvjax.Dense()],
}


def follow(cache, ids):
  """Feeds `[B, T]` token by token; returns logits `[B, T, V]` as well."""
  found = []
  for token in ids.T:
    logits, cache = kvjax.decode_step(
      CONFIG, PARAMS, cache, token, donate=False
    )
    found.append(np.asarray(logits))
  return np.stack(found, axis=1), cache


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'prompt.safetensors'


def save_and_load(path, cache):
  """Returns the cache after a way through the file."""
  kvjax.save_cache(path, cache, CONFIG, PARAMS)
  found = kvjax.load_cache(path, CONFIG, PARAMS)
  assert jax.tree.structure(found) == jax.tree.structure(cache)
  kinds = [(x.dtype, x.weak_type) for x in jax.tree.leaves(cache)]
  assert [(x.dtype, x.weak_type) for x in jax.tree.leaves(found)] == kinds
  tiny.alike(found, cache)
  return found


@pytest.mark.parametrize('kinds', KINDS.values(), ids=KINDS)
def test_goes_on_as_if_never_saved(path, kinds):
  """T-24: rows of 3, then of 9 and 10 tokens, past every window.

  With int8, latent attention still has a stream that is stored as it is.
  """
  cache = kvjax.init_cache(CONFIG, 2, 16, kinds=kinds, codec=kvjax.Int8())
  _, cache = follow(cache, IDS[:, :3])
  loaded = save_and_load(path, cache)
  want, cache = follow(cache, IDS[:, 3:9])
  found, loaded = follow(loaded, IDS[:, 3:9])
  np.testing.assert_array_equal(found, want)
  ragged = IDS[:, 9:10].at[0].set(-1)
  _, cache = follow(loaded, ragged)
  assert cache.length.tolist() == [9, 10]
  loaded = save_and_load(path, cache)
  want, _ = follow(cache, IDS[:, 10:])
  found, _ = follow(loaded, IDS[:, 10:])
  np.testing.assert_array_equal(found, want)


def test_dtype_and_overflow(path):
  """T-24: bfloat16, and one row that overflowed and one that did not."""
  cache = kvjax.init_cache(CONFIG, 2, 4, 'bfloat16')
  ids = IDS[:, :5].at[1, 2].set(-1)
  _, cache = follow(cache, ids)
  assert save_and_load(path, cache).overflow.tolist() == [True, False]


@pytest.mark.parametrize('flag', [True, False])
def test_a_flag_stays_a_flag(path, flag):
  """C-34: both values of a boolean come back as they were."""
  kind = kvjax.Bounded(budget=6, per_head=flag)
  cache = kvjax.init_cache(CONFIG, 1, 8, kinds=kind)
  found = save_and_load(path, cache).layout.stores[0]
  assert found.kind.per_head is flag


@pytest.mark.parametrize('other', ['False', 0])
def test_a_flag_of_another_type_is_refused(path, other):
  """C-34: neither a string nor a number passes for a boolean."""
  kind = kvjax.Bounded(budget=6, per_head=False)
  save_and_load(path, kvjax.init_cache(CONFIG, 1, 8, kinds=kind))
  with safetensors.safe_open(path, 'np') as file:
    text = file.metadata()[KEY]
  changed = text.replace('"per_head": false', f'"per_head": {other!r}')
  changed = changed.replace("'", '"')
  assert text != changed
  arrays = load_file(path)
  save_file(arrays, path, {KEY: changed, DIGEST: UNSIGNED})
  sign(path)
  with pytest.raises(ValueError, match='Bounded.per_head=.* declared'):
    kvjax.load_cache(path, CONFIG, PARAMS)


def test_another_rotation_or_type_is_refused(path):
  """C-35: a rotary base, a dtype; the message says which and both values."""
  cache = kvjax.init_cache(CONFIG, 1, 8)
  kvjax.save_cache(path, cache, CONFIG, PARAMS)
  turned = kvjax.Grouped(6, 3, 10, 7, rotary=kvjax.Rotary(6, base=5e5))
  for config, said in (
    (
      tiny.decoder(turned, tiny.MLA),
      'rotary.base is 10000.0, not 500000.0',
    ),
    (tiny.decoder(tiny.GQA), 'layers.length is 2, not 1'),
    (
      tiny.decoder(tiny.GQA, tiny.MLA, dtype='bfloat16'),
      'dtype is float32, not bfloat16',
    ),
  ):
    with pytest.raises(ValueError, match=f'other config: .*{said}'):
      kvjax.load_cache(path, config, PARAMS)


@pytest.mark.parametrize(
  'change',
  [
    pytest.param(lambda x: x.at[2, 3].multiply(1 + 2**-23), id='one_bit'),
    pytest.param(lambda x: x.at[0].set(x[1]).at[1].set(x[0]), id='two_swapped'),
    pytest.param(lambda x: x.at[0, 0].set(-0.0), id='a_sign_of_zero'),
  ],
)
def test_other_params_are_refused(path, change):
  """C-35: the message names the least change of one weight and its place."""
  params = PARAMS | {'embedding': PARAMS['embedding'].at[0, 0].set(0.0)}
  cache = kvjax.init_cache(CONFIG, 1, 8)
  kvjax.save_cache(path, cache, CONFIG, params)
  kvjax.load_cache(path, CONFIG, params)
  other = params | {'embedding': change(params['embedding'])}
  with pytest.raises(ValueError, match='other params: embedding is'):
    kvjax.load_cache(path, CONFIG, other)


def test_nothing_is_pickled(path):
  """C-34: the file is arrays and a JSON text, readable without kvjax."""
  cache = kvjax.init_cache(CONFIG, 1, 8, codec=kvjax.Int8())
  kvjax.save_cache(path, cache, CONFIG, PARAMS)
  with safetensors.safe_open(path, 'np') as file:
    said = json.loads(file.metadata()[KEY])
  assert said['layout']['capacity'] == 8
  assert load_file(path)['stores.0.key.codes'].dtype == np.int8
