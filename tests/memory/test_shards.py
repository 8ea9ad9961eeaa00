"""Plans of one device of a mesh against arrays that are really sharded."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import kvjax
from kvjax.caches.array_spec import ArraySpec
from kvjax.decoding.allocate import cache_spec
from kvjax.memory import param_specs, plan, shards

GQA = kvjax.ModelConfig(
  32,
  12,
  (
    kvjax.Layer(
      kvjax.Grouped(
        8,
        2,
        6,
        rotary=kvjax.Rotary(6),
        sinks=True,
        projection_bias=True,
      ),
      kvjax.Experts(4, 2, 10, bias=True, shared=kvjax.MLP(6)),
    ),
    kvjax.Layer(kvjax.Grouped(8, 2, 6), kvjax.MLP(14, bias=True)),
  ),
  tied=True,
)
MLA = kvjax.ModelConfig(
  32,
  12,
  (
    kvjax.Layer(
      kvjax.Latent(4, 10, 6, 6, kvjax.Rotary(4), query_rank=8),
      kvjax.MLP(14),
    ),
  ),
)
LAYOUTS = (
  {'batch': 2, 'heads': 2},
  {'heads': 2, 'experts': 2},
  {'slots': 2, 'copies': 2},
)


def place(config, layout, kinds=None):
  """Returns bytes that the first device holds, and those planned for it."""
  mesh = jax.make_mesh(tuple(layout.values()), tuple(layout))
  cut = shards(mesh)
  specs = jax.tree.map(
    cut.spec,
    cache_spec(config, 4, 16, kinds=kinds),
    is_leaf=lambda x: isinstance(x, ArraySpec),
  )
  cache = zeros(lambda: kvjax.init_cache(config, 4, 16, kinds=kinds))
  init = lambda: kvjax.init_params(config, jax.random.key(0))
  coded = zeros(lambda: kvjax.quantize(init()))
  placed = []
  for tree, spec in (
    (zeros(init), param_specs(config, mesh)),
    (coded, param_specs(config, mesh, 'int8')),
    (cache, specs),
  ):
    lay = jax.tree.map(lambda s: jax.sharding.NamedSharding(mesh, s), spec)
    placed.append(first_bytes(jax.device_put(tree, lay)))
  options = dict(batch_size=4, capacity=16, kinds=kinds, mesh=mesh)
  found = plan(config, **options)
  narrow = plan(config, **options, param_dtype='int8').params_bytes
  return placed, [found.params_bytes, narrow, found.cache_bytes]


def zeros(make):
  # Of what `make` would make: nothing is compiled for it.
  shapes = jax.eval_shape(make)
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def first_bytes(tree) -> int:
  first = jax.devices()[0]
  return sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(tree)
    for shard in leaf.addressable_shards
    if shard.device == first
  )


def main() -> None:
  for config in (GQA, MLA):
    for layout in LAYOUTS:
      for kinds in (None, kvjax.Paged(page=4)):
        placed, planned = place(config, layout, kinds)
        assert placed == planned, (layout, kinds, placed, planned)
        print(*placed)


def test_plans_of_three_layouts_are_what_four_devices_hold():
  flags = '--xla_force_host_platform_device_count=4'
  run = subprocess.run(
    [sys.executable, '-m', 'tests.memory.test_shards'],
    env=os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert not run.returncode, run.stderr[-2_000:]
  assert len(set(run.stdout.splitlines())) > 6


def test_a_mesh_is_split_where_it_comes_out_even():
  cut = shards({'heads': 16})
  assert cut.parts('kv_heads', 8) == 8  # each head on two devices
  assert cut.parts('kv_heads', 1) == 1  # MLA's one latent on all
  assert cut.parts('heads', 128) == 16
  assert cut.parts('heads', 12) == 4
  assert shards(None).devices == 1 and cut.devices == 16
  with pytest.raises(ValueError, match='kv_heads=8 on 16 devices.*2 times'):
    cut.axis('kv_heads', 8)


def test_heads_fewer_than_devices_are_held_twice():
  config = kvjax.load_config('llama-3-8b')
  eight, sixteen, thirty_two = (
    plan(config, batch_size=8, capacity=64, mesh={'heads': n})
    for n in (8, 16, 32)
  )
  assert eight.bytes_per_token == 131_072 // 8
  assert sixteen.cache_bytes == eight.cache_bytes == thirty_two.cache_bytes
  assert sixteen.params_bytes < eight.params_bytes


def test_the_latent_of_mla_is_held_by_every_device_that_shares_heads():
  config = kvjax.load_config('deepseek-v3')
  one = plan(config, batch_size=8, capacity=64)
  heads = plan(config, batch_size=8, capacity=64, mesh={'heads': 8})
  rows = plan(config, batch_size=8, capacity=64, mesh={'batch': 8})
  assert heads.cache_bytes == one.cache_bytes
  assert 8 * rows.cache_bytes == one.cache_bytes
  assert heads.params_bytes < one.params_bytes // 7
  assert rows.params_bytes == one.params_bytes


if __name__ == '__main__':
  main()
