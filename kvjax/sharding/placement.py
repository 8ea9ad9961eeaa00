"""Where every array of params and cache belongs on a mesh."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from kvjax.decoding.allocate import cache_spec
from kvjax.decoding.cache import Cache
from kvjax.decoding.leaf_axes import cache_specs
from kvjax.mesh.rules import Rules, partition_of
from kvjax.models.config import ModelConfig
from kvjax.models.param_axes import param_specs


def of_params(
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: Rules | None = None,
  *,
  param_dtype: Any = None,
) -> Any:
  """Returns a `NamedSharding` for every leaf of `init_params(config)`.

  `jax.device_put(params, of_params(config, mesh, rules))` places them. Every
  device has norms, biases of outputs and the encoder whole.

  Args:
    config: the model.
    mesh: of devices of one process or many.
    rules: what its axes split; None for axes named as what they split.
    param_dtype: 'int8' for every leaf of `quantize` of them.

  Raises:
    ValueError: the rules name an axis that the mesh does not have.
  """
  specs = param_specs(config, partition_of(mesh, rules), param_dtype)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def of_cache(
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: Rules | None = None,
  *,
  batch_size: int,
  capacity: int,
  **options: Any,
) -> Cache:
  """Returns a `NamedSharding` for every leaf of a cache.

  Of the cache that `init_cache(..., mesh=mesh, rules=rules)` allocates, and of
  no other: one that was allocated for one device, or for another number of
  devices that share slots, orders its slots otherwise. `save_cache` and
  `load_cache(..., mesh=mesh, rules=rules)` move such a cache.

  Args:
    config: the model.
    mesh: as in `of_params`.
    rules: as in `of_params`.
    batch_size: B rows.
    capacity: most tokens a row may hold.
    options: `kinds`, `codec` and others of `init_cache`.

  Raises:
    ValueError: as `init_cache`.
  """
  partition = partition_of(mesh, rules)
  spec = cache_spec(
    config, batch_size, capacity, partition=partition, **options
  )
  specs = cache_specs(spec, partition)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
