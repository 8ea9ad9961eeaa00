"""Attention over a mesh: every device attends to the slots that it holds.

Slots split over devices are context parallelism for decoding (Helix, arXiv
2507.07120): each device has the queries of all heads, attends to its own slots,
and one exchange merges the partial results by their log-sum-exp. Devices beyond
the kv heads that hold no slots of their own share the queries of a kv head.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kvjax.kernels.log_sum_exp import finite, merge_stacked, normalize
from kvjax.mesh.region import first_index, run_on_shards
from kvjax.mesh.rules import Partition, spec_of
from kvjax.streams.scoring import Bias, Scoring
from kvjax.streams.view import Streams, View

Axes = tuple[str, ...]
Result = tuple[jax.Array, jax.Array]
Attend = Callable[[Streams, jax.Array, View, Scoring], Result]


class Split(NamedTuple):
  """The mesh axes that split queries and slots.

  Attributes:
    rows: of queries and slots.
    kv_heads: of both.
    groups: split the queries of a kv head.
    slots: split the slots of a row.
  """

  rows: Axes
  kv_heads: Axes
  groups: Axes
  slots: Axes


def split_of(partition: Partition, queries: Streams, view: View) -> Split:
  """Returns the mesh axes that split queries and a view of whole leaves.

  Args:
    partition: mesh and rules.
    queries: for each key stream its queries `[B, K, G, T, H]`.
    view: the slots.
  """
  batch, heads, groups = next(iter(queries.values())).shape[:3]
  pooled = view.table is not None
  size = view.page if pooled else view.slots
  rows, kv_heads, slots = partition.axes(
    ('batch', 'kv_heads', '' if view.is_fresh else 'slots'),
    (batch, heads, size),
  )
  shared: Axes = ()
  if heads == partition.size(kv_heads):  # one kv head a device
    taken = (*rows, *kv_heads, *slots)
    (shared,) = partition.axes(('heads',), (groups,), taken)
  return Split(rows, kv_heads, shared, slots)


def serves(
  partition: Partition, queries: Streams, view: View, scoring: Scoring
) -> bool:
  """Returns whether devices attend to a view on their own, part by part.

  Otherwise XLA splits the block loop by rows and heads. It does that for
  streams that are expanded by split weights, which no device has whole, and for
  biases where each kv head has its own positions.
  """
  if view.leaves is None or view.positions is None:
    return False
  if split_of(partition, queries, view).slots:
    return True
  expands = any(stored is None for _, stored in view.maps)
  own_positions = _position_heads(view) > 1 and scoring.bias is not None
  return not expands and not own_positions


def attend(
  partition: Partition,
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  attend_here: Attend,
) -> Result:
  """Attends to one view, each device to the slots that it holds.

  Args:
    partition: mesh and rules.
    queries: for each key stream its queries `[B, K, G, T, H]`.
    positions: int32 `[B, T]`, -1 for a row that is no token.
    view: of whole leaves.
    scoring: scale, mask and bias.
    attend_here: what a device does with its part.

  Returns:
    Output `[B, K, G, T, E]` and log-sum-exp `[B, K, G, T]`, float32.
  """
  split = split_of(partition, queries, view)
  lead = next(iter(queries.values())).shape[:3]  # batch, kv heads, groups
  # Heads split over the devices that share slots are what the output's
  # projection reads, if its weight is split like that.
  own_heads = split.kv_heads + split.groups
  exchanged = own_heads + split.slots
  exchanges = partition.axes(('heads',), (lead[1] * lead[2],)) == (exchanged,)
  merge = _exchange_heads if exchanges else _sum_shares
  widths = {name: q.shape[-1] for name, q in queries.items()}
  bias_of, bias_arrays = _separate_arrays(scoring.bias)

  def attend_part(joined, positions, bias_arrays, *slots):
    out, lse = attend_here(
      _separate(joined, widths),
      positions,
      _view_here(view, split, *slots),
      _scoring_of(scoring, bias_of(bias_arrays), split),
    )
    out, lse = (
      x.reshape(x.shape[:1] + (-1,) + x.shape[3:]) for x in (out, lse)
    )
    return merge(out, lse, split.slots) if split.slots else (out, lse)

  by_rows = spec_of(split.rows)
  by_heads = spec_of(split.rows, split.kv_heads, split.groups)
  result = spec_of(split.rows, exchanged if exchanges else own_heads)
  run = run_on_shards(
    attend_part,
    partition,
    (by_heads, by_rows, spec_of(), *_slot_specs(view, split)),
    (result, result),
  )
  filled = view.filled if view.stripe_filled is None else view.stripe_filled
  out, lse = run(
    # Streams of queries are joined, so that one gather moves all of them.
    jnp.concatenate(list(queries.values()), axis=-1),
    positions,
    bias_arrays,
    view.leaves,
    view.positions,
    view.table,
    jnp.asarray(filled, jnp.int32),
  )
  return out.reshape(lead + out.shape[2:]), lse.reshape(lead + lse.shape[2:])


def _view_here(view, split, leaves, positions, table, filled):
  """Returns the part of a view whose slots this device holds."""
  size = positions.shape[2]
  if table is not None:
    filled = -(-filled // view.page) * size
  elif view.stripe_filled is None:
    filled = jnp.clip(filled - first_index(split.slots, size), 0, size)
  part = view.over(leaves, positions, table, filled)
  return dataclasses.replace(part, ordered=False) if split.slots else part


def _slot_specs(view: View, split: Split) -> list[Any]:
  """Returns how leaves, positions, table and filled slots are split."""
  own_positions = split.kv_heads if _position_heads(view) > 1 else ()
  by_rows = spec_of(split.rows)
  if view.table is not None:  # pages are of all rows
    leaf = spec_of(split.kv_heads, (), split.slots)
    return [leaf, spec_of(own_positions, (), split.slots), by_rows, spec_of()]
  leaf = spec_of(split.rows, split.kv_heads, split.slots)
  position = spec_of(split.rows, own_positions, split.slots)
  return [leaf, position, by_rows, spec_of()]


def _position_heads(view: View) -> int:
  """Returns how many kv heads have positions of their own; 1 for none."""
  assert view.positions is not None
  return view.positions.shape[0 if view.table is not None else 1]


def _exchange_heads(out: jax.Array, lse: jax.Array, axes: Axes) -> Result:
  """Merges a share of the heads `[B, N, T, E]` on every device.

  One all-to-all moves N / n heads from each of n devices to each other one.
  """
  packed = jnp.concatenate([out, lse[..., None]], axis=-1)[None]
  parts = jax.lax.all_to_all(
    packed, axes, split_axis=2, concat_axis=0, tiled=True
  )
  return merge_stacked(parts[..., :-1], parts[..., -1])


def _sum_shares(out: jax.Array, lse: jax.Array, axes: Axes) -> Result:
  """Merges all heads `[B, N, T, E]` on every device: a maximum, one sum."""
  top = finite(jax.lax.pmax(lse, axes))
  weights = jnp.exp(lse - top)
  # The output of a device that saw nothing may be NaN.
  saw_nothing = (lse == -jnp.inf)[..., None]
  shares = jnp.where(saw_nothing, 0, weights[..., None] * out)
  packed = jnp.concatenate([shares, weights[..., None]], axis=-1)
  sums = jax.lax.psum(packed, axes)
  return normalize(top, sums[..., -1], sums[..., :-1])


def _separate(joined: jax.Array, widths: dict[str, int]) -> Streams:
  """Returns the streams of queries that `attend` joined."""
  ends = itertools.accumulate(widths.values())
  parts = jnp.split(joined, list(ends)[:-1], axis=-1)
  return dict(zip(widths, parts, strict=True))


def _separate_arrays(
  bias: Bias | None,
) -> tuple[Callable[[Sequence[jax.Array]], Bias | None], list[jax.Array]]:
  """Returns a function that rebuilds a bias, and the arrays that it is given.

  What devices run may not close over arrays of the mesh.
  """
  leaves, structure = jax.tree.flatten(bias)
  if all(isinstance(leaf, jax.Array) for leaf in leaves):
    return functools.partial(jax.tree.unflatten, structure), leaves
  return lambda arrays: bias, []  # a function, of positions alone


def _scoring_of(scoring: Scoring, whole: Bias | None, split: Split) -> Scoring:
  """Returns scoring whose bias is that of the query heads of this device."""
  if whole is None:
    return scoring

  def bias(query_positions, slot_positions, kv_heads):
    count = kv_heads * _count(split.kv_heads)
    of_all = whole(query_positions, slot_positions, count)
    size = of_all.shape[2] // _count(split.groups)
    of_all = jax.lax.dynamic_slice_in_dim(
      of_all, first_index(split.kv_heads, kv_heads), kv_heads, axis=1
    )
    first = first_index(split.groups, size)
    return jax.lax.dynamic_slice_in_dim(of_all, first, size, axis=2)

  return dataclasses.replace(scoring, bias=bias)


def _count(axes: Axes) -> int:
  return jax.lax.axis_size(axes) if axes else 1
