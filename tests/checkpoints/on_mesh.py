"""What processes that share a mesh load and save; tests start them.

tests/sharding/processes.py calls `main` in each process.
"""

import pathlib

import jax
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.checkpoints import tensors
from kvjax.checkpoints.prompt_cache import save as saving
from kvjax.sharding import Rules, host, of_params

RULES = Rules(batch='c', heads=('m', 'c'), kv_heads='m')
ATTENTION = kvjax.Grouped(8, 2, 8, rotary=kvjax.Rotary(8))
LAYER = kvjax.Layer(ATTENTION, kvjax.MLP(48))
CONFIG = kvjax.ModelConfig(64, 32, (LAYER,))
# A cache of several kinds; 13 slots in stripes leave some at the end empty.
LAYERS = kvjax.ModelConfig(64, 32, (LAYER, LAYER, LAYER))
KINDS = [kvjax.Dense(), kvjax.Ring(window=4), kvjax.Paged(page=4)]
CAPACITY = 13
SLOTS = Rules(heads=('m', 'c'), slots='c')
PROMPT = np.asarray([[3, 1, 4, 1, 5], [9, 2, 6, -1, -1]])


def make_mesh(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
  """Returns a mesh of all devices, of all processes: 2 by what is left."""
  shape = (2, jax.device_count() // 2)
  return jax.make_mesh(shape, ('m', 'c'), axis_types=(kind, kind))


def load(path: str) -> list[float]:
  """Checks params that are loaded onto a mesh.

  Returns:
    Bytes that this process read of the file, and bytes of all params.
  """
  config, want = kvjax.load_checkpoint(path)
  read, sizes = tensors.StoredTensor.read, []

  def count(tensor, index=()):
    found = read(tensor, index)
    sizes.append(found.nbytes)
    return found

  mesh = make_mesh()
  tensors.StoredTensor.read = count
  _, params = kvjax.load_checkpoint(path, mesh=mesh, rules=RULES)
  tensors.StoredTensor.read = read
  check(params, want, of_params(config, mesh, RULES))
  total = sum(x.nbytes for x in jax.tree.leaves(want))
  want = kvjax.quantize(want)
  for kind in AxisType.Auto, AxisType.Explicit:
    mesh = make_mesh(kind)
    _, params = kvjax.load_checkpoint(
      path, mesh=mesh, rules=RULES, weights='int8'
    )
    check(params, want, of_params(config, mesh, RULES, param_dtype='int8'))
  return [sum(sizes), total]


def check(params, want, shardings) -> None:
  """Every device has its part, and nothing more."""
  assert jax.tree.structure(params) == jax.tree.structure(want)
  for x, y, sharding in zip(
    *map(jax.tree.leaves, (params, want, shardings)), strict=True
  ):
    assert x.sharding == sharding
    for shard in x.addressable_shards:
      np.testing.assert_array_equal(shard.data, np.asarray(y)[shard.index])


def fill(params, **place) -> kvjax.Cache:
  """Returns a cache of several kinds that has read the prompt."""
  cache = kvjax.init_cache(
    LAYERS, 2, CAPACITY, kinds=KINDS, codec=kvjax.Int8(), **place
  )
  _, cache = kvjax.prefill(LAYERS, params, cache, PROMPT)
  return cache


def answer(params, cache: kvjax.Cache) -> list[list[int]]:
  """Returns the tokens that follow token 8 and token 7."""
  tokens = [np.asarray([8, 7])]
  for _ in range(5):
    logits, cache = kvjax.decode_step(LAYERS, params, cache, tokens[-1])
    tokens.append(host(logits).argmax(-1))
  return np.stack(tokens, axis=1).tolist()


def save(folder: str) -> list[list[int]]:
  """Saves a cache of all processes; returns what follows."""
  place = {'mesh': make_mesh(), 'rules': SLOTS}
  _, params = kvjax.load_checkpoint(f'{folder}/model', **place)
  cache = fill(params, **place)
  path, is_last = f'{folder}/cache', jax.process_index() == 1
  write = saving.save_file
  saving.save_file = fail if is_last else write
  try:
    kvjax.save_cache(path, cache, LAYERS, params)
    raise AssertionError('a part of two was not written')
  except OSError as error:
    reason = 'disk full' if is_last else 'its own error says why'
    assert f'Process 1 could not write: {reason}' in str(error), error
  saving.save_file = write
  assert not pathlib.Path(path).exists()
  for _ in range(2):  # what is there is replaced
    kvjax.save_cache(path, cache, LAYERS, params)
  assert not [*pathlib.Path(folder).glob('.kvjax-*')]
  return answer(params, cache)


def fail(arrays, path, metadata):
  path.write_bytes(b'half')
  raise OSError('disk full')


def load_cache(folder: str, name: str) -> tuple[dict, kvjax.Cache]:
  """Returns params, and a saved cache that is on the mesh where it belongs."""
  place = {'mesh': make_mesh(), 'rules': SLOTS}
  _, params = kvjax.load_checkpoint(f'{folder}/model', **place)
  cache = kvjax.load_cache(f'{folder}/{name}', LAYERS, params, **place)
  empty = kvjax.init_cache(
    LAYERS, 2, CAPACITY, kinds=KINDS, codec=kvjax.Int8(), **place
  )
  assert jax.tree.structure(cache) == jax.tree.structure(empty)
  for x, y in zip(*map(jax.tree.leaves, (cache, empty)), strict=True):
    assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
  return params, cache


def resume(folder: str) -> list[list[int]]:
  """Returns what follows a cache that two processes saved."""
  return answer(*load_cache(folder, 'cache'))


def pass_on(folder: str) -> list[list[int]]:
  """Loads the cache of one device, saves it; returns what follows."""
  params, cache = load_cache(folder, 'alone')
  kvjax.save_cache(f'{folder}/again', cache, LAYERS, params)
  return answer(params, cache)


def main(case: str, *args: str):
  return globals()[case](*args)
