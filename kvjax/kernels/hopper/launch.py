"""Attention of few query rows on a Hopper GPU, by `flash_decode`.

The default there, for what it can serve: checked and measured on an H100.
Compiled for an H200, and interpreted on a CPU by those who ask for it by name.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from kvjax.kernels import blockwise
from kvjax.kernels.hopper import interpreter, tuning
from kvjax.kernels.hopper.spans import spans
from kvjax.kernels.hopper.tiling import (
  BLOCK,
  LANES,
  ROWS,
  TWICE,
  Launch,
  choose_stages,
)
from kvjax.kernels.hopper.tuning import Problem
from kvjax.kernels.log_sum_exp import merge
from kvjax.kernels.refusals import refuses_stored
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View
from kvjax.target import target

DTYPES = ('bfloat16', 'float16')


def missing() -> str:
  """Returns why this process cannot use the kernel; '' if it can."""
  if target() == 'gpu' or interpreter.settings() is not None:
    return ''
  return (
    f'it runs on a Hopper GPU, not on {target()}; '
    'kvjax.kernels.interpreted() runs it on a CPU, slowly'
  )


def at_home() -> bool:
  """Returns whether this process has a GPU on which it was measured."""
  if target() != 'gpu' or jax.default_backend() != 'gpu':
    return False
  return getattr(jax.devices()[0], 'compute_capability', '') == '9.0'


def refuses(queries: Streams, view: View, scoring: Scoring) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  if list(queries) != ['key']:
    return f'scores add up {", ".join(queries)}; it reads one stream of keys'
  groups, tokens = queries['key'].shape[2:4]
  reason = refuses_stored(groups * tokens, ROWS, view, scoring)
  return reason or _refuses_streams(view, scoring)


def _refuses_streams(view: View, scoring: Scoring) -> str:
  assert view.stored is not None
  found = {name: view.stored[name] for name in ('key', scoring.value)}
  for name, stream in found.items():
    if stream is None or stream.codes.dtype.name not in DTYPES:
      return f'stream {name!r} is not stored as {" or ".join(DTYPES)}'
  widths = [x.codes.shape[3] for x in found.values() if x is not None]
  if any(width % LANES for width in widths):
    return f'widths {widths} are not multiples of {LANES}'
  if choose_stages(*widths) < 2:
    return f'two blocks of widths {widths} do not fit in shared memory'
  if view.slots % BLOCK:
    return f'{view.slots} slots are not a multiple of {BLOCK}'
  return ''


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  stages: int | None = None,
  splits: int | None = None,
  merge: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`.

  Args:
    queries, positions, view, scoring: as there.
    block: slots a turn reads, a multiple of 64 that divides the slots.
    stages: blocks in flight.
    splits: programs that share the slots of a row and kv head.
    merge: where splits are merged, of `tiling.MERGES`. None, of each, for what
      the device's table says (`tuning`), or else for what fits its shared
      memory and fills an H200.

  Raises:
    ValueError: no form merges so, or not so many splits.
  """
  assert view.stored is not None and view.positions is not None
  stored: Streams = {n: view.stored[n] for n in ('key', scoring.value)}
  key, value = stored['key'].codes, stored[scoring.value].codes
  problem = Problem(
    math.prod(key.shape[:2]), view.slots, key.shape[3], value.shape[3]
  )
  cut = tuning.cut(problem, block, stages, splits, merge)
  if cut.merge == 'inside' and cut.splits > 1 and interpreter.settings():
    if reason := interpreter.missing_clusters():
      raise ValueError(f"{reason}. Give merge='after', or splits=1.")
  launch = Launch(
    rule=scoring.visibility,
    scale=scoring.scale,
    softcap=scoring.softcap,
    splits=cut.splits,
    block=cut.block,
    stages=cut.stages,
    interpret=interpreter.settings(),
    ordered=view.ordered,
  )
  rule = Scoring(
    scoring.scale, scoring.value, scoring.softcap, scoring.visibility
  )
  filled = jnp.asarray(view.filled, jnp.int32)
  static = rule, launch, cut.merge
  held = view.shown(view.positions)
  return _attend(static, queries, positions, stored, held, filled)


# Its derivative is that of the plain form: a kernel has none of its own.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(static, queries, positions, stored, held, filled):
  rule, launch, merge = static
  query, key = queries['key'], stored['key'].codes
  batch, heads, groups, tokens, width = query.shape
  rows = groups * tokens
  attend_rows: Any = _in_one_launch if merge == 'inside' else _in_three
  out, lse = attend_rows(
    launch,
    query.reshape(batch, heads, rows, width),
    (key, stored[rule.value].codes),
    positions,
    held,
    filled,
  )
  shape = batch, heads, groups, tokens
  return (
    out[:, :, :rows].reshape(*shape, out.shape[-1]),
    lse[:, :, :rows].reshape(shape),
  )


def _in_three(launch, query, stored, positions, held, filled):
  # Pallas is imported by who asks for it, not by all who import kvjax.
  from kvjax.kernels.hopper.flash_decode import flash_decode

  rows = query.shape[2]
  tile = query.astype(stored[0].dtype)
  tile = jnp.pad(tile, ((0, 0), (0, 0), (0, ROWS - rows), (0, 0)))
  span = spans(positions, held, filled, launch.rule, launch.ordered)
  groups = rows // positions.shape[1]
  return merge(
    *flash_decode(tile, *stored, positions, held, span, launch, groups)
  )


def _in_one_launch(launch, query, stored, positions, held, filled):
  from kvjax.kernels.hopper.flash_decode_cluster import flash_decode_cluster

  if query.dtype != stored[0].dtype and not _room_for_wide(launch, stored):
    query = query.astype(stored[0].dtype)
  span = filled.reshape(1)
  if not launch.ordered:  # a sum over all slots: no program of the row's own
    span = spans(positions, held, filled, launch.rule, False)
  return flash_decode_cluster(query, *stored, positions, held, span, launch)


def _room_for_wide(launch, stored) -> bool:
  """Returns whether queries of four bytes leave room for as many stages."""
  width, value_width = (x.shape[3] for x in stored)
  most = choose_stages(width, value_width, launch.block, TWICE + 2)
  return most >= launch.stages


@_attend.defjvp
def _attend_jvp(static, primals, tangents):
  plain = functools.partial(blockwise.attend_stored, static[0])
  return jax.jvp(plain, primals, tangents)
