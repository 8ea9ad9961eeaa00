"""`mosaic_gpu` whose splits are merged inside its launch, by clusters.

A candidate: it was compiled for an H200 and interpreted on a CPU, and has not
run on a GPU. It serves what `mosaic_gpu` serves, with one launch instead of
three.
"""

import importlib

import jax
import jax.numpy as jnp

from kvjax.kernels.hopper import (
  interpreter,
  launch,
  mosaic_gpu,
  tuning,
)
from kvjax.kernels.hopper.spans import spans
from kvjax.kernels.hopper.tiling import choose_stages
from kvjax.kernels.hopper.tuning import Problem, Tiles
from kvjax.kernels.kernel import Kernel
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

PORTABLE = 8  # thread blocks of a cluster that every Hopper GPU launches


def attend(
  queries: Streams,
  positions: jax.Array,
  view: View,
  scoring: Scoring,
  *,
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attends to the slots of one view; see `kvjax.kernels.hopper.launch.attend`.

  It has no derivative: a race takes none.

  Raises:
    ValueError: shared memory is too small for two blocks of slots, or several
      splits are interpreted by a JAX that interprets no clusters.
  """
  # Pallas takes a second to import: only a caller of this kernel waits for it.
  from experiments.measuring.candidates.flash_decode_cluster import (
    flash_decode_cluster,
  )
  from kvjax.kernels.hopper.flash_decode import Operands

  assert view.stored is not None and view.positions is not None
  stored: Streams = view.stored
  problem = launch.problem_of(view, scoring)
  tiles = tuning.choose_tiles(problem, block)
  tiles = in_cluster(problem, tiles, queries['key'].dtype.itemsize)
  if tiles.splits > 1 and interpreter.settings() and not has_clusters():
    raise ValueError(
      'JAX interprets clusters of thread blocks from 0.11 on. Use it, or '
      "kernel='mosaic_gpu'."
    )
  slot_positions = view.shown(view.positions)
  span = jnp.asarray(view.filled, jnp.int32).reshape(1)
  if not view.ordered:  # a sum over all slots, which no single program computes
    rule = scoring.visibility
    span = spans(positions, slot_positions, view.filled, rule, False)
  batch, heads, groups, tokens, width = queries['key'].shape
  rows = groups * tokens
  out, lse = flash_decode_cluster(
    Operands(
      queries['key'].reshape(batch, heads, rows, width),
      stored['key'].codes,
      stored[scoring.value].codes,
      positions,
      slot_positions,
      span,
    ),
    launch.launch_of(tiles, view, scoring),
  )
  shape = batch, heads, groups, tokens
  return (
    out[:, :, :rows].reshape(*shape, out.shape[-1]),
    lse[:, :, :rows].reshape(shape),
  )


def in_cluster(problem: Problem, tiles: Tiles, itemsize: int) -> Tiles:
  """Returns the tiles of `mosaic_gpu` as far as one cluster can have them.

  Args:
    problem, tiles: of `mosaic_gpu`.
    itemsize: bytes of an element of a query as it arrives. Shared memory stores
      a query twice: as it arrives, and as a tile of two bytes an element.

  Raises:
    ValueError: shared memory is too small for two blocks of slots.
  """
  most = choose_stages(
    problem.width, problem.value_width, tiles.block, 2 + itemsize
  )
  if most < 2:
    raise ValueError(
      f'widths {problem.width} and {problem.value_width} leave no room for '
      "two blocks next to the queries. Use kernel='mosaic_gpu'."
    )
  return Tiles(
    tiles.block, min(tiles.stages, most), min(tiles.splits, PORTABLE)
  )


def has_clusters() -> bool:
  """Returns whether this JAX interprets clusters."""
  room = 'jax._src.pallas.mosaic_gpu.interpret.shared_memory'
  return hasattr(importlib.import_module(room), 'ClusterBarrier')


KERNEL = Kernel(
  name='mosaic_gpu inside',
  platform='cuda',
  missing=mosaic_gpu.missing,
  is_at_home=lambda: False,  # it runs wherever it is named, and only there
  refuses=launch.refuses,
  attend=attend,
)
