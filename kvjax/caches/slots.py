"""Slots of a store: how tokens are written into them, and what is empty."""

import jax
import jax.numpy as jnp

from kvjax.context import PARTITION, target
from kvjax.mesh.region import first_index, run_on_shards
from kvjax.mesh.rules import spec_of
from kvjax.native import write_narrow

EMPTY = -1  # position of a slot that holds no token


def first_position(slot_positions: jax.Array) -> jax.Array:
  """Returns int32 `[B]`: the lowest position in slots `[B, K, S]`, or 0."""
  is_token = slot_positions >= 0
  lowest = jnp.min(jnp.where(is_token, slot_positions, 2**30), axis=(1, 2))
  return jnp.where(lowest == 2**30, 0, lowest)


def write_rows(leaf: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
  """Writes `new [B, K, T, ...]` into `leaf [B, K, S, ...]` at `[B, 1|K, T]`.

  In place, if the leaf is donated. Every device of a mesh writes the slots that
  it holds. A leaf with an entry for several slots has as many fewer of them.
  """
  slots = of_groups(slots, new.shape[2])
  partition = PARTITION.value
  if partition is None:
    return _write(leaf, new, slots)
  names = 'batch', 'kv_heads', 'slots'
  rows, heads, parts = partition.axes(names, leaf.shape[:3])

  def write(leaf, new, slots):
    size = leaf.shape[2]
    here = slots - first_index(parts, size)
    # Distinct slots, because scatters promise that. None is negative, because
    # JAX counts those from the end.
    outside = size + jnp.arange(slots.shape[2], dtype=jnp.int32)
    slots = jnp.where((here >= 0) & (here < size), here, outside)
    return _write(leaf, new, slots)

  heads_of_slots = heads if slots.shape[1] > 1 else ()
  split = spec_of(rows, heads, parts)
  specs = split, spec_of(rows, heads), spec_of(rows, heads_of_slots)
  return run_on_shards(write, partition, specs, split)(leaf, new, slots)


def of_groups(slots: jax.Array, entries: int) -> jax.Array:
  """Returns the entries that slots `[..., T]` share, in whole groups."""
  size = slots.shape[-1] // entries
  return slots if size == 1 else slots[..., ::size] // size


def read_rows(leaf: jax.Array, slots: jax.Array) -> jax.Array:
  """Returns `[B, K, N, ...]` of `leaf [B, K, S, ...]` at slots `[B, 1, N]`."""

  def read(leaf, slots):
    by_head = jax.vmap(lambda x, at: x.at[at].get(mode='clip'), (0, None))
    return jax.vmap(by_head)(leaf, slots[:, 0])

  partition = PARTITION.value
  if partition is None:
    return read(leaf, slots)
  rows, heads = partition.axes(('batch', 'kv_heads'), leaf.shape[:2])
  split = spec_of(rows, heads)
  return run_on_shards(read, partition, (split, spec_of(rows)), split)(
    leaf, slots
  )


def _write(leaf, new, slots):
  """Writes tokens, at most as many as there are slots.

  A prompt of which few tokens stay would otherwise be copied whole, in the
  order of a scatter.
  """
  size = leaf.shape[2]
  if new.shape[2] > size:
    order = jnp.argsort(slots, axis=-1)[..., :size]
    slots = jnp.take_along_axis(slots, order, axis=-1)
    order = jnp.broadcast_to(order, new.shape[:2] + order.shape[2:])
    order = order.reshape(order.shape + (1,) * (new.ndim - 3))
    new = jnp.take_along_axis(new, order, axis=2)
  return write_narrow.put(leaf, new, slots, _scatter)


def _scatter(leaf, new, slots):
  """Scatters; split along batch or heads, a mesh need not communicate."""

  def write_head(slots_of_head, values, where):
    return slots_of_head.at[where].set(values, mode='drop', unique_indices=True)

  if target() == 'gpu':  # XLA makes two kernels of a scatter of one index
    slots = jnp.broadcast_to(slots, new.shape[:3])
  elif slots.size == 1:
    return _replace(leaf, new, slots[0, 0, 0])
  heads = 0 if slots.shape[1] == leaf.shape[1] else None
  slots = slots if heads == 0 else slots[:, 0]
  return jax.vmap(jax.vmap(write_head, (0, 0, heads)))(leaf, new, slots)


def _replace(leaf, new, slot):
  """Writes one token of one row: XLA would make a loop of a scatter."""
  is_inside = (slot >= 0) & (slot < leaf.shape[2])
  starts = [jnp.int32(0)] * leaf.ndim
  starts[2] = jnp.where(is_inside, slot, 0)
  old = jax.lax.dynamic_slice(
    leaf, starts, new.shape, allow_negative_indices=False
  )
  return jax.lax.dynamic_update_slice(
    leaf, jnp.where(is_inside, new, old), starts, allow_negative_indices=False
  )
