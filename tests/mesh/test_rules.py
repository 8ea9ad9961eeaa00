"""Rules: which mesh axes split what, by hand."""

import jax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import kvjax
from kvjax.memory import plan
from kvjax.mesh.rules import Partition, over_heads, partition_of, spec_of
from kvjax.sharding import Rules, of_params

MESH = AbstractMesh((2, 8, 4), ('data', 'model', 'context'))
RULES = Rules(
  batch='data',
  heads=('model', 'context'),
  slots='context',
  experts=('data', 'model'),
)
PARTITION = Partition(MESH, RULES)


def test_an_axis_takes_the_longest_prefix_that_divides_it():
  cut = partition_of({'a': 4, 'b': 2, 'c': 2}, Rules(heads=('a', 'b', 'c')))
  parts = {n: cut.parts(['heads'], [n])[0] for n in (16, 8, 24, 4, 2, 6, 1)}
  # Two heads: the first mesh axis has four devices, so no later one is tried.
  assert parts == {16: 16, 8: 8, 24: 8, 4: 4, 2: 1, 6: 1, 1: 1}


def test_no_mesh_axis_splits_two_axes_of_an_array():
  axes = PARTITION.axes(('experts', 'hidden'), (16, 64))
  assert axes == (('data', 'model'), ('context',))
  # What the first axis cannot use is left for the second.
  assert PARTITION.axes(('experts', 'hidden'), (2, 64)) == (
    ('data',),
    ('model', 'context'),
  )
  assert PARTITION.axes(('heads',), (64,), taken=('model',)) == (('context',),)
  assert PARTITION.spec(('heads', '', 'batch'), (64, 5, 6)) == P(
    ('model', 'context'), None, 'data'
  )
  shape = PARTITION.local_shape(('batch', 'kv_heads', 'slots'), (6, 8, 100))
  assert shape == [3, 1, 25]


def test_what_follows_from_heads():
  assert RULES['kv_heads'] == ('model',)  # slots have the other axis
  assert RULES['hidden'] == RULES['vocab'] == ('model', 'context')
  assert RULES['width'] == ()
  free = Rules(heads=('a', 'b'), kv_heads=(), hidden='a', slots='b')
  assert (free['kv_heads'], free['hidden'], free['vocab']) == (
    (),
    ('a',),
    ('a', 'b'),
  )
  assert RULES.mesh_axes == ('data', 'model', 'context')
  assert RULES.weight_axes == ('model', 'context', 'data')
  assert Rules(batch='d', slots='c').weight_axes == ()
  assert hash(RULES) == hash(Rules(**vars(RULES)))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'heads': 3}, 'heads=3 must name a mesh axis, or be a tuple of names'),
    ({'slots': ('a', 1)}, r"slots=\('a', 1\) must name a mesh axis"),
    ({'batch': None}, 'batch=None must name a mesh axis'),
    ({'heads': ('a', 'a')}, 'names a mesh axis twice'),
    (
      {'batch': 'a', 'slots': 'a'},
      r"batch=\('a',\) and slots=\('a',\) share the mesh axis 'a'. Give slots",
    ),
    ({'kv_heads': 'a', 'slots': ('b', 'a')}, 'kv_heads=.* and slots=.* share'),
  ],
)
def test_refuses_rules(fields, message):
  with pytest.raises(ValueError, match=message):
    Rules(**fields)


@pytest.mark.parametrize(
  'mesh, rules, message',
  [
    ({'tensor': 2}, None, r"'tensor' is unknown; known: .*Rules\(heads="),
    ({'a': 2}, Rules(heads='b'), "name the mesh axis 'b', and the mesh has a"),
    ({'a': 2}, 'heads', "rules='heads' must be a kvjax.sharding.Rules"),
    (None, Rules(), 'need a mesh: give mesh='),
    (8, None, 'mesh=8 is no mesh'),
    ({'heads': 0}, None, 'mesh axis heads=0 must be a positive integer'),
    ({3: 2}, None, 'mesh axis 3=2 must be'),
  ],
)
def test_refuses_a_mesh(mesh, rules, message):
  with pytest.raises(ValueError, match=message):
    partition_of(mesh, rules)


def test_axes_named_as_what_they_split():
  cut = partition_of({'batch': 2, 'heads': 4, 'copies': 3})
  assert cut.devices == 24
  assert cut.parts(('batch', 'kv_heads', 'slots'), (4, 8, 64)) == [2, 4, 1]
  assert cut.rules['slots'] == ()
  assert partition_of(None).devices == 1
  real = jax.make_mesh((1,), ('heads',))
  assert partition_of(real).mesh == real.abstract_mesh


def test_a_cache_needs_no_mesh_axis_of_every_name():
  config = kvjax.ModelConfig(
    8, 4, (kvjax.Layer(kvjax.Grouped(2, 1, 4), kvjax.MLP(4)),)
  )
  mesh = jax.make_mesh((1,), ('heads',))
  cache = kvjax.init_cache(config, 1, 8, mesh=mesh)
  assert cache.layout.rules == Rules(heads='heads')


def test_a_mesh_of_prime_factors():
  mesh, rules = over_heads(24)
  assert list(mesh.values()) == [2, 2, 2, 3]
  cut = partition_of(mesh, rules)
  assert cut.parts(['kv_heads'], [8]) == [8]
  assert cut.parts(['heads'], [96]) == [24]
  assert over_heads(1) == ({}, Rules())


def test_specs():
  assert spec_of(('a', 'b'), (), ('c',)) == P(('a', 'b'), None, 'c')
  assert spec_of() == P()


def test_heads_fewer_than_devices_are_held_twice():
  config = kvjax.load_config('llama-3-8b')
  eight, sixteen = (
    plan(config, batch_size=8, capacity=64, mesh=mesh, rules=rules)
    for mesh, rules in map(over_heads, (8, 16))
  )
  assert eight.bytes_per_token == 131_072 // 8
  assert sixteen.cache_bytes == eight.cache_bytes
  assert sixteen.params_bytes < eight.params_bytes


def test_the_latent_of_mla_is_held_by_every_device_that_shares_heads():
  config = kvjax.load_config('deepseek-v3')
  one = plan(config, batch_size=8, capacity=64)
  heads = plan(config, batch_size=8, capacity=64, mesh={'heads': 8})
  rows = plan(config, batch_size=8, capacity=64, mesh={'batch': 8})
  slots = plan(config, batch_size=8, capacity=64, mesh={'slots': 8})
  assert heads.cache_bytes == one.cache_bytes
  assert heads.params_bytes < one.params_bytes // 7
  assert rows.params_bytes == slots.params_bytes == one.params_bytes
  for cut in (rows, slots):  # lengths and flags are on every device
    assert 0 <= cut.cache_bytes - one.cache_bytes / 8 < 64


@pytest.mark.parametrize(
  'name, sizes',
  [
    ('llama-3-70b', {'model': 8, 'context': 2}),
    ('deepseek-v3', {'model': 16, 'context': 4}),
  ],
)
def test_specs_of_params_are_what_is_planned(name, sizes):
  """Without any device: what each would have of every leaf, added."""
  config = kvjax.load_config(name)
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
  rules = Rules(heads=('model', 'context'), slots='context', experts='model')
  shardings = of_params(config, mesh, rules)
  params = jax.eval_shape(lambda: kvjax.init_params(config, jax.random.key(0)))
  total = sum(
    jax.tree.leaves(
      jax.tree.map(
        lambda x, sharding: (
          jax.ShapeDtypeStruct(sharding.shard_shape(x.shape), x.dtype).size
          * x.dtype.itemsize
        ),
        params,
        shardings,
      )
    )
  )
  options = {'batch_size': 8, 'capacity': 4096, 'mesh': mesh, 'rules': rules}
  assert plan(config, **options).params_bytes == total


@pytest.mark.parametrize('name', ['shards', 'param_specs'])
def test_an_old_name_says_where_it_went(name):
  with pytest.raises(AttributeError, match=r'is kvjax\.sharding\.'):
    getattr(kvjax.memory, name)
