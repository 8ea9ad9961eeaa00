"""Models and caches over a mesh: kv heads in 2, slots in 4, weights in 8."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import kvjax
from kvjax.sharding import Rules, of_params
from kvjax.testing import assert_cached_matches_uncached

CAPACITY = 24
RULES = Rules(heads=('kv', 'c'), slots='c')
CONTRACTS: dict[str, dict[str, Callable[[], Any]]] = collections.defaultdict(
  dict
)
"""What raises where something is wrong, by group and name."""


@functools.cache
def mesh_of(axes: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
  return jax.make_mesh((2, 4), ('kv', 'c'), axis_types=(axes,) * 2)


def contract(function: Callable[[], Any]) -> Callable[[], Any]:
  """Registers a function that raises where something is wrong."""
  CONTRACTS['calls'][function.__name__] = function
  return function


ROTARY = kvjax.Rotary(6, base=100.0)
TURN = kvjax.Rotary(8, base=100.0)


def grouped(**more: Any) -> kvjax.Layer:
  attention = kvjax.Grouped(8, 2, 8, value_width=5, **more)
  return kvjax.Layer(attention, kvjax.MLP(16))


def init(config, batch, *, rules=RULES, capacity=CAPACITY, **options):
  """Returns an empty cache over the mesh, whose slots are really split."""
  cache = kvjax.init_cache(
    config, batch, capacity, mesh=mesh_of(), rules=rules, **options
  )
  if rules['slots']:
    for leaf in jax.tree.leaves(cache.stores):
      assert leaf.addressable_shards[0].data.shape[2] < leaf.shape[2]
  return cache


def place(config: kvjax.ModelConfig, params: Any, rules: Rules = RULES) -> Any:
  return jax.device_put(params, of_params(config, mesh_of(), rules))


def run_model(config, params, kind=None, *, reference=None, **options) -> None:
  """Asserts that a split cache gives the logits of the uncached model."""
  rules = options.get('rules', RULES)
  on_mesh = place(config, params, rules)
  uncached = jax.jit(functools.partial(kvjax.forward, reference or config))
  assert_cached_matches_uncached(
    lambda tokens: uncached(params, jnp.asarray(tokens)),
    lambda batch: init(config, batch, kinds=kind, **options),
    lambda cache, tokens, lengths: kvjax.extend(
      config, on_mesh, cache, jnp.asarray(tokens), lengths
    ),
    vocab_size=config.vocab_size,
    chunkings=(3,),
    widths=(3, 7),
  )


def close(found: Any, wanted: Any, rtol: float = 1e-5) -> None:
  found, wanted = np.asarray(found), np.asarray(wanted)
  error = np.abs(found - wanted).max() / np.abs(wanted).max()
  assert error <= rtol, f'differs by {error:.1e}'
