"""Code that runs shard by shard, and arrays placed where the rules say."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import (
  AxisType,
  NamedSharding,
  PartitionSpec,
  reshard,
  use_abstract_mesh,
)

from kvjax.context import PARTITION
from kvjax.mesh.rules import Partition, spec_of

R = TypeVar('R')


def mesh_of(*arrays: Any) -> jax.sharding.AbstractMesh | None:
  """Returns the mesh of several devices that arrays are split over, or None.

  None, too, for the part of an array that one device sees in a `shard_map`.
  """
  for array in arrays:
    if not isinstance(array, jax.Array):
      continue
    mesh = getattr(jax.typeof(array).sharding, 'mesh', None)
    if mesh is None or mesh.empty:
      continue
    kinds = set(mesh.axis_types)
    # Where axes are explicit, even one device wants a sharding of each product.
    if kinds != {AxisType.Manual} and (
      mesh.size > 1 or AxisType.Explicit in kinds
    ):
      return mesh
  return None


def check_meshes(*arrays: Any) -> None:
  """Raises ValueError where arrays of one program are on several meshes."""
  meshes = {mesh: None for mesh in map(mesh_of, arrays) if mesh is not None}
  if len(meshes) > 1:
    first, second, *_ = meshes
    raise ValueError(
      f'Arguments are on two meshes, {first} and {second}. Place params and '
      'cache on one: of_params(config, mesh, rules), init_cache(..., '
      'mesh=mesh, rules=rules).'
    )


def is_in_shard(array: Any) -> bool:
  """Returns whether an array is the part that one device of several holds."""
  mesh = jax.typeof(array).sharding.mesh
  return mesh.size > 1 and mesh_of(array) is None


def run_on_mesh(
  function: Callable[..., R],
  partition: Partition,
  args: tuple[Any, ...],
  result_specs: Callable[[R], Any],
) -> R:
  """Returns the results of a traced function, placed over a mesh.

  XLA may split results differently than their rules say: the next call would be
  compiled anew, and could not reuse donated buffers.

  Args:
    function: of arrays, and of anything static.
    partition: mesh and rules.
    args: of the function.
    result_specs: returns a `PartitionSpec` for every array of its results.
  """
  mesh = partition.mesh
  auto = mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Auto))
  is_auto = auto == mesh
  context = contextlib.nullcontext() if is_auto else use_abstract_mesh(auto)
  with PARTITION(Partition(auto, partition.rules)), context:
    if not is_auto:  # XLA splits the program: no operation says how
      args = jax.tree.map(_without_spec, args)
    results = function(*args)
    specs = result_specs(results)
    if is_auto:
      return jax.tree.map(constrain, results, specs)

  def place(x, spec):
    return reshard(x, NamedSharding(mesh, spec))

  return jax.tree.map(place, results, specs)


def _without_spec(x: Any) -> Any:
  is_array = isinstance(x, jax.Array | np.ndarray)
  return reshard(x, PartitionSpec()) if is_array else x


def run_on_shards(
  function: Callable[..., R],
  partition: Partition,
  in_specs: Any,
  out_specs: Any,
) -> Callable[..., R]:
  """Returns a function that every device runs on its own parts of arrays."""

  def run(*parts):
    with PARTITION(None):
      return function(*parts)

  # `check_vma` knows no custom calls, and kernels are such.
  return jax.shard_map(
    run,
    mesh=partition.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def on_every_device(function: Callable[..., R]) -> Callable[..., R]:
  """Returns a function that every device runs alike, on whole arrays.

  For a few integers, which are cheaper to compute anew than to move. XLA would
  split them as the arrays that they belong to, and gather them again.
  """
  partition = PARTITION.value
  if partition is None:
    return function
  return run_on_shards(function, partition, spec_of(), spec_of())


def first_index(mesh_axes: tuple[str, ...], size: int) -> Any:
  """Returns the index, in the whole axis, of the first of `size` units here."""
  return jax.lax.axis_index(mesh_axes) * size if mesh_axes else 0


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Returns x, split by a spec over the mesh of what is traced now."""
  partition = PARTITION.value
  if partition is None:
    return x
  sharding = NamedSharding(partition.mesh, spec)
  return jax.lax.with_sharding_constraint(x, sharding)


def rows_spec(partition: Partition, x: jax.Array) -> PartitionSpec:
  """Returns how activations `[B, ...]` are split: by rows, where no weight is.

  A mesh axis that splits weights would need these moved to split rows by it.
  """
  return partition.spec(('rows',), x.shape[:1])


def constrain_rows(x: jax.Array) -> jax.Array:
  """Returns activations `[B, ...]`, split by rows where no weight is.

  Without this XLA may split them as the rows of a cache, and gather weights.
  """
  partition = PARTITION.value
  return x if partition is None else constrain(x, rows_spec(partition, x))


def constrain_heads(x: jax.Array) -> jax.Array:
  """Returns queries or outputs `[B, K, G, T, ...]`, split as their weights are.

  A projection is split by heads, and its rows as activations are. Where a cache
  is split by other axes, this array moves, and not the weight.
  """
  partition = PARTITION.value
  if partition is None:
    return x
  heads = x.shape[1] * x.shape[2]
  # Devices may share a kv head: only of all heads in a row is the split even.
  flat = x.reshape(x.shape[:1] + (heads,) + x.shape[3:])
  spec = partition.spec(('rows', 'heads'), flat.shape[:2])
  return constrain(flat, spec).reshape(x.shape)


def constrain_whole(x: jax.Array) -> jax.Array:
  """Returns an array that every device has whole."""
  return constrain(x, PartitionSpec())
