"""Saved caches of meshes: any mesh loads what any other saved.

Two processes of two devices save a cache whose slots they share; the process of
these tests, which has one device, and four others load it.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors

import kvjax
from kvjax.checkpoints.prompt_cache import parts
from kvjax.checkpoints.prompt_cache.metadata import KEY, OF_A_MESH
from tests.checkpoints import on_mesh
from tests.checkpoints.on_mesh import LAYERS
from tests.checkpoints.test_prompt_cache import rewrite
from tests.sharding.processes import run_processes

PARAMS = kvjax.init_params(LAYERS, jax.random.key(0))
PART = 'part-0000{}-of-00002.safetensors'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a model and a cache that one device saved."""
  folder = tmp_path_factory.mktemp('saved')
  kvjax.save_checkpoint(folder / 'model', LAYERS, PARAMS)
  cache = on_mesh.fill(PARAMS)
  kvjax.save_cache(folder / 'alone', cache, LAYERS, PARAMS)
  return folder


@pytest.fixture(scope='module')
def tokens():
  return on_mesh.answer(PARAMS, on_mesh.fill(PARAMS))


@pytest.fixture(scope='module')
def shared(folder, tokens):
  """The directory that two processes saved."""
  found = run_processes('tests.checkpoints.on_mesh', 2, 2, 'save', str(folder))
  assert found == [tokens] * 2
  return folder / 'cache'


def test_one_process_loads_what_two_saved(shared, tokens, folder):
  cache = kvjax.load_cache(shared, LAYERS, PARAMS)
  want = kvjax.load_cache(folder / 'alone', LAYERS, PARAMS)
  assert cache.layout == want.layout and cache.layout.rules is None
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6)
  jax.tree.map(close, cache, want)
  assert on_mesh.answer(PARAMS, cache) == tokens


def test_four_processes_load_what_two_saved(shared, tokens, folder):
  args = 'tests.checkpoints.on_mesh', 4, 1, 'resume'
  assert run_processes(*args, str(folder)) == [tokens] * 4


def contents(path):
  with safetensors.safe_open(path, 'np') as file:
    arrays = {key: file.get_tensor(key).tobytes() for key in file.keys()}
    return arrays, json.loads(file.metadata()[KEY])


def test_a_mesh_saves_the_file_of_one_device(folder, tokens):
  args = 'tests.checkpoints.on_mesh', 1, 8, 'pass_on'
  assert run_processes(*args, str(folder)) == [tokens]
  again, alone = (contents(folder / name) for name in ('again', 'alone'))
  assert again == alone
  assert not any(name in json.dumps(again[1]) for name in OF_A_MESH)


def without_a_part(path):
  (path / PART.format(2)).unlink()


def with_a_third(path):
  shutil.copy(path / PART.format(2), path / 'part-00003-of-00003.safetensors')


def twice_the_first(path):
  shutil.copy(path / PART.format(1), path / PART.format(2))


def of_another_save(path):
  change = lambda written, arrays: written['part'].update(save='other')
  rewrite(path / PART.format(2), change)


def of_another_length(path):
  change = lambda written, arrays: written.update(batch_size=3)
  rewrite(path / PART.format(2), change)


def without_a_block(path):
  change = lambda written, arrays: arrays.pop(max(arrays))
  rewrite(path / PART.format(2), change)


def with_a_block_moved(path):
  def change(written, arrays):
    key = next(key for key in arrays if key.startswith('stores.0.key'))
    arrays['stores.0.key.codes@0,0,1,0'] = arrays.pop(key)

  rewrite(path / PART.format(2), change)


def with_a_changed_bit(path):
  data = bytearray((path / PART.format(2)).read_bytes())
  data[-1] ^= 1
  (path / PART.format(2)).write_bytes(data)


def with_other_stripes(path):
  for index in 1, 2:
    change = lambda written, arrays: written.update(stripes=5)
    rewrite(path / PART.format(index), change)


def empty(path):
  for file in path.iterdir():
    file.unlink()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (without_a_part, 'part-00002-of-00002.safetensors is missing'),
    (with_a_third, 'part-00003-of-00003.safetensors is left over'),
    (twice_the_first, 'part 2 is of another save'),
    (of_another_save, 'part 2 is of another save'),
    (of_another_length, 'part 2 is of another save'),
    (without_a_block, 'the blocks of .* do not just cover it'),
    (with_a_block_moved, 'the blocks of stores.0.key.codes do not just cover'),
    (with_a_changed_bit, 'its SHA-256 is not the one'),
    (with_other_stripes, r'books.0.positions is int32 \[2, 1, 14\]; its .*15'),
    (empty, 'is a directory, and no cache that was saved'),
  ],
)
def test_parts_that_are_no_whole(shared, tmp_path, change, message):
  path = tmp_path / 'cache'
  shutil.copytree(shared, path)
  change(path)
  with pytest.raises(ValueError, match=message):
    kvjax.load_cache(path, LAYERS, PARAMS)


def test_a_part_is_no_cache(shared, folder, tmp_path):
  with pytest.raises(ValueError, match='give the directory of all its parts'):
    kvjax.load_cache(shared / PART.format(1), LAYERS, PARAMS)
  path = tmp_path / PART.format(1).replace('2.', '1.')
  shutil.copy(folder / 'alone', path)
  with pytest.raises(ValueError, match='give the directory of all its parts'):
    kvjax.load_cache(tmp_path, LAYERS, PARAMS)


def test_what_parts_do_not_replace(shared, folder):
  for path in folder, folder / 'alone':
    with pytest.raises(ValueError, match='give another path, or remove it'):
      parts.check_target(path)
  parts.check_target(shared)
  parts.check_target(folder / 'absent')
  with pytest.raises(ValueError, match='is there and no regular file'):
    kvjax.save_cache(shared, on_mesh.fill(PARAMS), LAYERS, PARAMS)


def test_meshes_that_cannot_hold_it(folder, tmp_path):
  mesh = jax.make_mesh((1,), ('c',))
  rules = kvjax.sharding.Rules(slots='c')
  args = folder / 'alone', LAYERS, PARAMS
  with pytest.raises(ValueError, match='need a mesh: give mesh='):
    kvjax.load_cache(*args, rules=rules)
  with pytest.raises(ValueError, match="mesh={'c': 1} has no devices"):
    kvjax.load_cache(*args, mesh={'c': 1}, rules=rules)
  path = tmp_path / 'bounded'
  cache = kvjax.init_cache(LAYERS, 1, 8, kinds=kvjax.Bounded(budget=4))
  kvjax.save_cache(path, cache, LAYERS, PARAMS)
  with pytest.raises(ValueError, match='Bounded compares the scores of all'):
    kvjax.load_cache(path, LAYERS, PARAMS, mesh={'c': 2}, rules=rules)
  cache = kvjax.load_cache(*args, mesh=mesh, rules=rules)
  assert cache.layout.rules == rules
