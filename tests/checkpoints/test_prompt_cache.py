"""Saved caches: what is refused, what a failure leaves, caches of one's own.

That a cache goes on exactly is in `tests/facts/test_saved_facts.py`.
"""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import kvjax
from kvjax.checkpoints.prompt_cache import save
from kvjax.checkpoints.prompt_cache.digest import DIGEST, UNSIGNED, sign
from tests.checkpoints.writing import GOLDEN


@dataclasses.dataclass(frozen=True)
class Everything(kvjax.Dense):
  """A kind from outside."""

  note: str = 'mine'


@pytest.fixture(scope='module')
def model():
  return kvjax.load_checkpoint(GOLDEN / 'qwen2')


@pytest.fixture
def saved(model, tmp_path):
  cache = kvjax.init_cache(model[0], 2, 8)
  path = tmp_path / 'prompt.safetensors'
  kvjax.save_cache(path, cache, *model)
  return path


def rewrite(path, change):
  """Changes metadata (a dict) and arrays of a file, and their digest."""
  with safetensors.safe_open(path, 'np') as file:
    said = json.loads(file.metadata()[save.KEY])
  arrays = load_file(path)
  change(said, arrays)
  metadata = {save.KEY: json.dumps(said), DIGEST: UNSIGNED}
  save_file(arrays, path, metadata)
  sign(path)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda m, a: m.update(format=3), 'format 3 is not 1 or 2'),
    (lambda m, a: m.update(batch_size='2'), "batch_size='2' must be"),
    (lambda m, a: m.pop('params'), "'params'"),
    (lambda m, a: m['layout'].pop('books'), 'Layout.books is missing'),
    (lambda m, a: m['layout'].update(x=1), 'Layout.x is no field of it'),
    (lambda m, a: m['layout'].update(type='os'), "'os' is a type unknown"),
    (lambda m, a: a.pop('length'), 'length is missing'),
    (lambda m, a: a.update(x=np.ones(1)), 'x is unexpected'),
    (
      lambda m, a: a.update(length=np.ones(3, np.int32)),
      r'length is int32 \[3\]; its metadata makes it int32 \[2\]',
    ),
    (lambda m, a: a.update(length=np.ones(2, np.int64)), 'length is int64'),
  ],
)
def test_a_file_that_contradicts_itself(model, saved, change, message):
  rewrite(saved, change)
  with pytest.raises(ValueError, match=message):
    kvjax.load_cache(saved, *model)


def test_a_statistic_that_is_no_longer_kept(model, tmp_path):
  """Before scores said so, a bounded cache of any score kept a number."""
  path = tmp_path / 'prompt.safetensors'
  kind = kvjax.Bounded(4, kvjax.Recency(), protect=(0, 0), prefill='chunks')
  cache = kvjax.init_cache(model[0], 2, 8, kinds=kind)
  _, cache = kvjax.prefill(*model, cache, jnp.asarray([[3, 1, 4, 1, 5, 9]] * 2))
  kvjax.save_cache(path, cache, *model)

  def as_before(metadata, arrays):
    for store in metadata['layout']['memories']:
      for name in ('protect', 'prefill'):
        store['kind'].pop(name)
    for index, book in enumerate(cache.books):
      arrays[f'books.{index}.total'] = np.ones(book.positions.shape, np.float32)

  rewrite(path, as_before)
  chex.assert_trees_all_equal(kvjax.load_cache(path, *model), cache)
  rewrite(path, lambda _, arrays: arrays.update({'books.0.sum': np.ones(1)}))
  with pytest.raises(ValueError, match='books.0.sum is unexpected'):
    kvjax.load_cache(path, *model)


def test_a_file_that_is_none(model, saved, tmp_path):
  saved.write_bytes(saved.read_bytes()[:-1])
  with pytest.raises(ValueError, match='truncated or no saved cache'):
    kvjax.load_cache(saved, *model)
  with pytest.raises(ValueError, match='no saved cache: its metadata has no'):
    kvjax.load_cache(GOLDEN / 'qwen2' / 'model.safetensors', *model)
  with pytest.raises(FileNotFoundError):
    kvjax.load_cache(tmp_path / 'absent', *model)


def test_a_failure_leaves_the_file_before(model, saved, monkeypatch):
  before = saved.read_bytes()

  def fail(arrays, path, metadata):
    path.write_bytes(b'half')
    raise OSError('disk full')

  monkeypatch.setattr(save, 'save_file', fail)
  with pytest.raises(OSError, match='disk full'):
    kvjax.save_cache(saved, kvjax.init_cache(model[0], 1, 8), *model)
  assert saved.read_bytes() == before
  assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_refused_before_anything_is_written(model, tmp_path):
  config, params = model
  cache = kvjax.init_cache(config, 1, 8)
  with pytest.raises(FileNotFoundError, match='absent is no directory: make'):
    kvjax.save_cache(tmp_path / 'absent' / 'x', cache, config, params)

  def traced(cache):
    kvjax.save_cache(tmp_path / 'x', cache, config, params)
    return cache.length

  with pytest.raises(ValueError, match='call it outside jit'):
    jax.eval_shape(traced, cache)
  cache.length.delete()
  with pytest.raises(kvjax.DonatedCacheError):
    kvjax.save_cache(tmp_path / 'x', cache, config, params)
  assert not list(tmp_path.iterdir())


def test_a_kind_from_outside_is_named(model, saved):
  cache = kvjax.init_cache(model[0], 1, 8, kinds=Everything())
  kvjax.save_cache(saved, cache, *model)
  with pytest.raises(
    ValueError, match="'Everything' is a type unknown.*types="
  ):
    kvjax.load_cache(saved, *model)
  found = kvjax.load_cache(saved, *model, types=(Everything,))
  assert found.layout == cache.layout
  other = kvjax.init_cache(model[0], 1, 8, kinds=Everything(note=min))
  with pytest.raises(ValueError, match='min.* cannot be written as JSON'):
    kvjax.save_cache(saved, other, *model)


def test_the_source_of_an_encoder_decoder(tmp_path):
  config, params = kvjax.load_checkpoint(GOLDEN / 't5')
  cache = kvjax.init_cache(config, 2, 8, 'bfloat16', source_length=5)
  draw = np.random.default_rng(0)
  cross, source = jax.tree.map(
    lambda x: jnp.asarray(draw.integers(0, 2, x.shape), x.dtype),
    (cache.cross, cache.source),
  )
  filled = dataclasses.replace(cache, cross=cross, source=source)
  path = tmp_path / 'prompt'
  kvjax.save_cache(path, filled, config, params)
  found = kvjax.load_cache(path, config, params)
  jax.tree.map(np.testing.assert_array_equal, found, filled)
  assert found.cross[0]['key'].dtype == filled.cross[0]['key'].dtype
