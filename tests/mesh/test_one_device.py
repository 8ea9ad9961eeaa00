"""A mesh of one device, with the explicit axes that JAX makes by default."""

import jax
import jax.numpy as jnp
import numpy as np

import kvjax
from kvjax.sharding import Rules, host, of_params


def test_calls_on_a_mesh_of_one_device_are_those_without_a_mesh():
  layer = kvjax.Layer(
    kvjax.Grouped(4, 2, 6, rotary=kvjax.Rotary(6)), kvjax.MLP(10)
  )
  config = kvjax.ModelConfig(17, 12, (layer,))
  params = kvjax.init_params(config, jax.random.key(0))
  tokens = jnp.arange(10).reshape(2, 5)
  mesh = jax.make_mesh((1, 1), ('model', 'context'))
  rules = Rules(heads=('model', 'context'), slots='context')
  placed = jax.device_put(params, of_params(config, mesh, rules))
  found = []
  for weights, options in (
    (params, {}),
    (placed, {'mesh': mesh, 'rules': rules}),
  ):
    cache = kvjax.init_cache(config, 2, 16, **options)
    logits, cache = kvjax.prefill(config, weights, cache, tokens)
    ids, cache = kvjax.generate(config, weights, cache, logits, 5)
    back = kvjax.rewind(cache, 3)
    again, _ = kvjax.extend(config, weights, back, tokens[:, :2])
    found.append((host(ids), host(again)))
  np.testing.assert_array_equal(found[0][0], found[1][0])
  np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
