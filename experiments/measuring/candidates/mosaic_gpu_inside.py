"""`mosaic_gpu` whose splits are merged inside its launch, by clusters.

A candidate: it was compiled for an H200 and interpreted on a CPU, and has not
run on a GPU. It serves what `mosaic_gpu` serves, with one launch instead of
three.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp

from kvjax.kernels.hopper import interpreter, launch, tuning
from kvjax.kernels.hopper.spans import spans
from kvjax.kernels.hopper.tiling import choose_stages
from kvjax.kernels.hopper.tuning import Problem, Tiles
from kvjax.kernels.kernel import Kernel
from kvjax.streams.scoring import Scoring
from kvjax.streams.view import Streams, View

CLUSTER = 16  # thread blocks, at most, of a cluster on a Hopper GPU
PORTABLE = 8  # thread blocks of a cluster that every such GPU launches
# Bytes of an element of a query in shared memory, where the query is stored
# twice: as it arrives, of at most four bytes, and as a tile of two.
QUERY_BYTES = 6


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
  """Attends to the slots of one view; see `kvjax.kernels.hopper.launch.attend`.

  It has no derivative: a race takes none.

  Raises:
    ValueError: no cluster has as many blocks, or its shared memory is too small
      for two blocks of slots.
  """
  # Pallas takes a second to import: only a caller of this kernel waits for it.
  from experiments.measuring.candidates.flash_decode_cluster import (
    flash_decode_cluster,
  )
  from kvjax.kernels.hopper.flash_decode import Operands

  assert view.stored is not None and view.positions is not None
  stored: Streams = view.stored
  problem = launch.problem_of(view, scoring)
  tiles = tuning.choose_tiles(problem, block, stages)
  tiles = in_cluster(problem, tiles, splits)
  if tiles.splits > 1 and interpreter.settings():
    if reason := missing_clusters():
      raise ValueError(f'{reason}. Give splits=1.')
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


def in_cluster(problem: Problem, tiles: Tiles, splits: int | None) -> Tiles:
  """Returns tiles that one cluster and its shared memory can be.

  Args:
    problem: what is cut.
    tiles: of `mosaic_gpu`.
    splits: requested blocks of a cluster; None for those of the tiles, as far
      as every Hopper GPU launches them.

  Raises:
    ValueError: as `attend`.
  """
  if splits and splits > CLUSTER:
    raise ValueError(
      f'splits={splits} cannot merge inside one launch: a cluster has at '
      f'most {CLUSTER} blocks. Give fewer.'
    )
  most = choose_stages(
    problem.width, problem.value_width, tiles.block, QUERY_BYTES
  )
  if most < 2:
    raise ValueError(
      f'widths {problem.width} and {problem.value_width} leave no room for '
      "two blocks next to the queries. Use kernel='mosaic_gpu'."
    )
  return dataclasses.replace(
    tiles,
    stages=min(tiles.stages, most),
    splits=splits or min(tiles.splits, PORTABLE),
  )


def missing_clusters() -> str:
  """Returns why this JAX interprets no clusters; '' if it does."""
  room = 'jax._src.pallas.mosaic_gpu.interpret.shared_memory'
  if hasattr(importlib.import_module(room), 'ClusterBarrier'):
    return ''
  return 'JAX interprets clusters of thread blocks from 0.11 on'


KERNEL = Kernel(
  name='mosaic_gpu inside',
  platform='cuda',
  missing=launch.missing,
  is_at_home=lambda: False,  # it runs wherever it is named, and only there
  refuses=launch.refuses,
  attend=attend,
)
