"""Which mesh an array is on, as its trace sees it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from kvjax.mesh.region import (
  constrain,
  constrain_heads,
  first_index,
  is_in_shard,
  mesh_of,
  rows_spec,
)
from kvjax.mesh.rules import Partition
from kvjax.sharding import Rules


def split(axes: AxisType, *sizes: int) -> jax.ShapeDtypeStruct:
  """Returns an argument that a mesh of several devices splits."""
  names = ('a', 'b')[: len(sizes)]
  mesh = AbstractMesh(sizes, names, axis_types=(axes,) * len(sizes))
  sharding = NamedSharding(mesh, P('a'))
  return jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding)


def seen(argument: jax.ShapeDtypeStruct, function=mesh_of):
  """Returns what a function says of an argument while it is traced."""
  found = []
  jax.eval_shape(lambda x: found.append(function(x)), argument)
  return found[0]


@pytest.mark.parametrize('axes', [AxisType.Auto, AxisType.Explicit])
def test_the_mesh_of_an_argument(axes):
  mesh = seen(split(axes, 2, 4))
  assert mesh is not None and dict(mesh.shape) == {'a': 2, 'b': 4}
  assert not seen(split(axes, 2, 4), is_in_shard)


def test_one_device_is_no_mesh():
  assert seen(split(AxisType.Auto, 1)) is None
  assert mesh_of(jnp.ones(3), 5, None) is None
  assert not is_in_shard(jnp.ones(3))


def test_the_first_array_that_has_a_mesh_counts():
  x = split(AxisType.Auto, 2)
  mesh = seen(x, lambda x: mesh_of(None, jnp.ones(3), x))
  assert dict(mesh.shape) == {'a': 2}


def test_inside_a_shard_there_is_no_mesh():
  found = []

  def inside(x):
    found.append((mesh_of(x), is_in_shard(x), x.shape))
    return x

  def run(x):
    mesh = jax.typeof(x).sharding.mesh
    return jax.shard_map(inside, mesh=mesh, in_specs=P('a'), out_specs=P('a'))(
      x
    )

  jax.eval_shape(run, split(AxisType.Auto, 2))
  assert found == [(None, True, (4, 4))]


def test_rows_are_split_where_no_weight_is():
  rules = Rules(batch=('a', 'b'), heads='b', kv_heads=())
  partition = Partition(AbstractMesh((2, 4), ('a', 'b')), rules)
  assert rows_spec(partition, jnp.ones((8, 4))) == P('a')
  assert rows_spec(partition, jnp.ones((3, 4))) == P()


def test_without_a_mesh_nothing_is_constrained():
  x = jnp.ones((2, 1, 3, 1, 4))
  assert constrain(x, P('a')) is x
  assert constrain_heads(x) is x
  assert first_index((), 7) == 0
