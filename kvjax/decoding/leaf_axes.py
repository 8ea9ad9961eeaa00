"""Named axes of a cache's leaves, and how rules split them over a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from kvjax.caches.array_spec import ArraySpec, is_leaf
from kvjax.decoding.cache import Cache
from kvjax.mesh.region import mesh_of
from kvjax.mesh.rules import Partition


def map_leaves(f: Callable[..., Any], *caches: Cache) -> Cache:
  """Returns a cache of `f(*leaves, axes=names)` over caches arranged alike.

  `axes` names the axes of a leaf; trailing ones may be left out.
  """

  def map_book(index, kind):
    spec = kind.book(1, 1)
    names = jax.tree.map(lambda leaf: leaf.axes, spec, is_leaf=is_leaf)
    return jax.tree.map(
      lambda axes, *leaves: f(*leaves, axes=axes),
      names,
      *(cache.books[index] for cache in caches),
      is_leaf=lambda x: type(x) is tuple,
    )

  def map_store(index, store):
    if store is None:
      return {}
    mapped = []
    parts = [store.kind.tiers(None, x.stores[index], None) for x in caches]
    for tier in zip(*parts, strict=True):
      axes = tuple(name for _, name in tier[0].kind.leaf_axes(1, 1))
      leaves = [part.store for part in tier]
      apply = functools.partial(f, axes=axes)
      mapped.append(jax.tree.map(apply, *leaves, is_leaf=is_leaf))
    return store.kind.join(mapped)

  def map_field(field, *axes):
    return jax.tree.map(
      lambda *leaves: f(*leaves, axes=axes),
      *(getattr(cache, field) for cache in caches),
      is_leaf=is_leaf,
    )

  layout = caches[0].layout
  return dataclasses.replace(
    caches[0],
    length=map_field('length', 'batch'),
    overflow=map_field('overflow', 'batch'),
    books=tuple(map_book(i, kind) for i, kind in enumerate(layout.kinds())),
    stores=tuple(map_store(i, store) for i, store in enumerate(layout.stores)),
    cross=map_field('cross', 'batch', 'kv_heads'),
    source=map_field('source', 'batch'),
    constants=map_field('constants', 'batch', 'kv_heads'),
  )


def leaf_spec(
  leaf: Any, axes: tuple[str, ...], partition: Partition
) -> PartitionSpec:
  """Returns how a leaf is split whose first axes have these names."""
  return partition.spec(_split_names(axes), leaf.shape[: len(axes)])


def local_shape(leaf: ArraySpec, partition: Partition) -> list[int]:
  """Returns the shape of one device's part of a leaf."""
  return partition.local_shape(_split_names(leaf.axes), leaf.shape)


def _split_names(axes: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the names of a leaf's axes by which rules split it.

  Leaves without kv heads are lengths, flags and tables. Every device has them
  whole, so that every process reads them without communication.
  """
  return axes if 'kv_heads' in axes else ('',) * len(axes)


def cache_specs(cache: Cache, partition: Partition) -> Cache:
  """Returns a `PartitionSpec` for every leaf of a cache or its specification.

  Args:
    cache: of arrays or of `ArraySpec`s.
    partition: how a mesh splits it.
  """

  def spec(leaf, axes):
    return leaf_spec(leaf, axes, partition)

  return map_leaves(spec, cache)


def partition_of_cache(cache: Cache) -> Partition | None:
  """Returns how a cache is split; None for a cache of one device.

  None, too, for a cache that its owner split without rules.

  Raises:
    ValueError: the caller's `shard_map` has taken some axes of the mesh, or
      slots are in stripes for another number of devices.
  """
  mesh = mesh_of(cache.length)
  rules = cache.layout.rules
  if mesh is None or rules is None:
    return None
  if AxisType.Manual in mesh.axis_types:
    raise ValueError(
      f'The cache is in a shard_map over {mesh.manual_axes}, some axes of its '
      'mesh. Call kvjax outside of it: kvjax splits its own work.'
    )
  partition = Partition(mesh, rules)
  parts = partition.slot_parts
  for kind in cache.layout.kinds():
    if kind.split(parts) != kind:
      raise ValueError(
        f'{kind} was allocated for another number of devices that share slots '
        f'than this mesh has, {parts}. Save the cache where it was allocated, '
        'and load it by load_cache(..., mesh=, rules=).'
      )
  return partition
