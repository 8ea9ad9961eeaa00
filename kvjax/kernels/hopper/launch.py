"""Attention of few query rows on a Hopper GPU, by `flash_decode`.

The default on such a GPU for the views that it can serve: checked and measured
on an H100. It was compiled for an H200. Elsewhere it is interpreted, for a
caller that names it inside `kvjax.kernels.interpreted()`.
"""

import functools
import math

import jax
import jax.numpy as jnp

from kvjax.kernels import blockwise
from kvjax.kernels.blockwise import Slots
from kvjax.kernels.hopper import interpreter, tuning
from kvjax.kernels.hopper.spans import spans
from kvjax.kernels.hopper.tiling import (
  BLOCK,
  LANES,
  ROWS,
  Launch,
  choose_stages,
)
from kvjax.kernels.hopper.tuning import Problem, Tiles
from kvjax.kernels.kernel import refuses_stored
from kvjax.kernels.log_sum_exp import merge_stacked
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

DTYPES = ('bfloat16', 'float16')


def refuses(
  queries: Streams, view: View, scoring: Scoring, block: int | None = None
) -> str:
  """Returns why this kernel cannot serve a view; '' if it can."""
  if list(queries) != ['key']:
    return f'scores add up {", ".join(queries)}; it reads one stream of keys'
  groups, tokens = queries['key'].shape[2:4]
  return (
    refuses_stored(groups * tokens, ROWS, view, scoring)
    or _refuses_streams(view, scoring)
    or _refuses_block(view, block)
  )


def _refuses_streams(view: View, scoring: Scoring) -> str:
  assert view.stored is not None
  streams = {name: view.stored[name] for name in ('key', scoring.value)}
  for name, stream in streams.items():
    if stream is None or stream.in_place_type not in DTYPES:
      return f'stream {name!r} is not stored as {" or ".join(DTYPES)}'
  widths = [x.codes.shape[3] for x in streams.values() if x is not None]
  if any(width % LANES for width in widths):
    return f'widths {widths} are not multiples of {LANES}'
  if choose_stages(*widths) < 2:
    return f'two blocks of widths {widths} do not fit in shared memory'
  if view.slots % BLOCK:
    return f'{view.slots} slots are not a multiple of {BLOCK}'
  return ''


def _refuses_block(view: View, block: int | None) -> str:
  if block is None or (
    block >= BLOCK and not (block % BLOCK + view.slots % block)
  ):
    return ''
  return (
    f'block={block} is no multiple of {BLOCK} that divides {view.slots} slots'
  )


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
  stages: int | None = None,
  splits: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `blockwise.attend`.

  Args:
    queries, positions, view, scoring: as there.
    block: slots that one iteration reads, a multiple of 64 that divides the
      slots.
    stages: blocks in flight.
    splits: programs that share the slots of a row and kv head. None, of each,
      for what the device's table says (`tuning`), or else for what fits its
      shared memory and fills an H200.
  """
  assert view.stored is not None and view.positions is not None
  tiles = tuning.choose_tiles(problem_of(view, scoring), block, stages, splits)
  return _attend(
    without_arrays(scoring),
    launch_of(tiles, view, scoring),
    queries,
    positions,
    {name: view.stored[name] for name in ('key', scoring.value)},
    Slots(view.shown(view.positions), jnp.asarray(view.filled, jnp.int32)),
  )


def problem_of(view: View, scoring: Scoring) -> Problem:
  """Returns the sizes by which the launch for a view is cut."""
  assert view.stored is not None
  stored: Streams = view.stored
  keys, values = stored['key'].codes, stored[scoring.value].codes
  programs = math.prod(keys.shape[:2])
  return Problem(programs, view.slots, keys.shape[3], values.shape[3])


def launch_of(tiles: Tiles, view: View, scoring: Scoring) -> Launch:
  """Returns the static choices of the launch for a view."""
  return Launch(
    rule=scoring.visibility,
    scale=scoring.scale,
    softcap=scoring.softcap,
    splits=tiles.splits,
    block=tiles.block,
    stages=tiles.stages,
    interpret=interpreter.settings(),
    ordered=view.ordered,
  )


def without_arrays(scoring: Scoring) -> Scoring:
  """Returns the scoring without its arrays: a hashable, static argument."""
  return Scoring(
    scoring.scale, scoring.value, scoring.softcap, scoring.visibility
  )


# The kernel has no derivative; that of the plain form stands in for it.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _attend(rule, launch, queries, positions, stored, slots: Slots):
  # Pallas takes a second to import: only a caller of this kernel waits for it.
  from kvjax.kernels.hopper.flash_decode import Operands, flash_decode

  slot_positions, filled, _ = slots
  keys, values = stored['key'].codes, stored[rule.value].codes
  batch, heads, groups, tokens, width = queries['key'].shape
  rows = groups * tokens
  # A warpgroup multiplies 64 rows at once, however few of them are queries.
  tile = queries['key'].reshape(batch, heads, rows, width).astype(keys.dtype)
  tile = jnp.pad(tile, ((0, 0), (0, 0), (0, ROWS - rows), (0, 0)))
  span = spans(positions, slot_positions, filled, launch.rule, launch.ordered)
  operands = Operands(tile, keys, values, positions, slot_positions, span)
  parts = flash_decode(operands, launch, groups)
  out, lse = merge_stacked(*parts)
  shape = (batch, heads, groups, tokens)
  return (
    out[:, :, :rows].reshape(shape + out.shape[-1:]),
    lse[:, :, :rows].reshape(shape),
  )


@_attend.defjvp
def _attend_jvp(rule, launch, primals, tangents):
  del launch
  plain = functools.partial(blockwise.attend_stored, rule)
  return jax.jvp(plain, primals, tangents)
