"""What processes that share a mesh load and save; tests start them.

tests/sharding/processes.py calls `main` in each process.
"""

import jax
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.checkpoints import tensors
from kvjax.sharding import Rules, of_params

RULES = Rules(batch='c', heads=('m', 'c'), kv_heads='m')
ATTENTION = kvjax.Grouped(8, 2, 8, rotary=kvjax.Rotary(8))
CONFIG = kvjax.ModelConfig(64, 32, (kvjax.Layer(ATTENTION, kvjax.MLP(48)),))


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


def main(case: str, *args: str):
  return globals()[case](*args)
