"""Flash-decode in one launch: the programs of a row merge among themselves.

The loop over blocks is that of `flash_decode`. What XLA's own programs do
before and after that kernel is inside this one. Queries are taken as they are
given, in their own dtype, and become a tile in shared memory. Where slots are
ordered, what a row must read follows from scalars that are leaves already. The
splits of a row and kv head are one cluster of thread blocks. These tell each
other their log-sum-exp through distributed shared memory, weigh their outputs
by it and write them to global memory, and each adds up some of the rows. A
counter there, of the programs that have finished, would have to be zeroed by
another launch; a cluster has barriers that need none.
"""

import dataclasses
import functools
import importlib
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from kvjax.kernels.hopper import flash_decode
from kvjax.kernels.hopper.flash_decode import Blocks, Operands
from kvjax.kernels.hopper.spans import span_of_row
from kvjax.kernels.hopper.tiling import ROWS, Launch


@dataclasses.dataclass(frozen=True)
class Results:
  """Where a cluster writes the attention of a row and kv head.

  Attributes:
    out: `[rows, E]`.
    lse: `[rows]`.
    shares: `[splits, rows, E]`, what each block adds; None for one split.
    lses: `[splits, 64]`, in place of distributed shared memory where the kernel
      is interpreted; None otherwise.
  """

  out: Any
  lse: Any
  shares: Any = None
  lses: Any = None


# Jitted, so that a program lowers the kernel once for all its layers.
@functools.partial(jax.jit, static_argnames='launch')
def flash_decode_cluster(
  operands: Operands, launch: Launch
) -> tuple[jax.Array, jax.Array]:
  """Returns attention, merged.

  Args:
    operands: as `flash_decode.flash_decode`, but for queries `[B, K, G T, H]`,
      row `g T + t` of each kv head, which are no tile; and for the span, which
      is int32 `[1]` where slots are ordered: the first that no row has filled.
    launch: static choices; its splits are blocks of one cluster.

  Returns:
    Output `[B, K, rows, E]`, rows being G T rounded up to what a warpgroup
    moves at once, and log-sum-exp `[B, K, rows]`, rounded up to 8, float32; 0
    and -inf where a row saw nothing.
  """
  batch, heads, rows = operands.queries.shape[:3]
  width = operands.values.shape[3]
  whole, unit = -(-rows // 8) * 8, rows_at_once(width)
  lead = batch, heads
  shapes = [(*lead, whole, width), (*lead, whole)]
  if launch.splits > 1:
    shapes[0] = (*lead, -(-rows // unit) * unit, width)
    shapes.append((*lead, launch.splits, whole, width))
    if launch.interpret is not None:  # it has no distributed shared memory
      shapes.append((*lead, launch.splits, ROWS))

  def kernel(*refs, **scratch):
    _run_program(launch, Operands(*refs[:6]), refs[6:], scratch)

  call = plgpu.kernel(
    kernel,
    out_type=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
    scratch_types=_scratch_types(launch, operands),
    grid=(heads, batch),
    grid_names=('head', 'row'),
    cluster=(launch.splits,),
    cluster_names=('split',),
    kernel_name='flash_decode_cluster',
    **flash_decode.program_options(launch),
  )
  out, lse, *_ = call(*operands)
  return out, lse


def rows_at_once(width: int) -> int:
  """Returns how many rows of values 128 threads add up at once."""
  return 1 if width % 128 == 0 else 2


def _scratch_types(launch: Launch, operands: Operands) -> dict[str, Any]:
  """Returns shared memory and barriers of one program, by name."""
  types = flash_decode.scratch_types(launch, operands)
  shape = ROWS, operands.queries.shape[3]
  types['raw_query'] = plgpu.SMEM(shape, operands.queries.dtype)
  types['query'] = flash_decode.tile_type(operands.keys.dtype)(shape)
  if launch.splits > 1:
    types['met'] = plgpu.ClusterBarrier(
      collective_axes=('split',), num_barriers=2
    )
  return types


def _run_program(launch: Launch, operands: Operands, refs, scratch) -> None:
  """Runs one block of a cluster: one split of a kv head and row."""
  split, head, row, warpgroup = (
    jax.lax.axis_index(name) for name in ('split', 'head', 'row', 'warpgroup')
  )
  query_positions = operands.query_positions(row)
  rows, slots = operands.queries.shape[2], operands.keys.shape[2]
  if launch.ordered:
    first, end, full = _span(launch, query_positions, operands.span[0], slots)
  else:
    first, end, full = (operands.span[row, i] for i in range(3))
  begin, count = flash_decode.share_blocks(first, end, split, launch)
  streams = operands.streams(row, head)

  @pl.when(warpgroup == flash_decode.COMPUTE)
  def _():
    plgpu.set_max_registers(232, action='increase')
    blocks = Blocks(begin, count, full, query_positions)
    results = Results(*(ref.at[row, head] for ref in refs))
    plgpu.barrier_wait(scratch['query_full'])
    _make_tile(scratch['query'], scratch['raw_query'], rows)
    _compute(launch, split, blocks, results, scratch)

  @pl.when(warpgroup == flash_decode.LOAD)
  def _():
    plgpu.set_max_registers(40, action='decrease')
    target = scratch['raw_query'].at[pl.ds(0, rows)]
    plgpu.copy_gmem_to_smem(
      operands.queries.at[row, head], target, scratch['query_full']
    )
    buffers = flash_decode.buffers_of(scratch)
    flash_decode.load_blocks(launch, streams, begin, count, buffers)


def _span(launch, query_positions, filled, slots):
  """Returns `span_of_row` of scalars."""
  last = functools.reduce(jnp.maximum, query_positions)
  tokens = [jnp.where(x < 0, slots, x) for x in query_positions]
  earliest = functools.reduce(jnp.minimum, tokens)
  most = jnp.minimum(filled, slots)
  return span_of_row(last + 1, earliest, most, launch.rule)


def _compute(launch, split, blocks: Blocks, results: Results, scratch) -> None:
  out, lse = flash_decode.attend_blocks(
    launch, scratch['query'], blocks, flash_decode.buffers_of(scratch)
  )
  if launch.splits == 1:
    scratch['out'][...], scratch['lse'][...] = out, lse
    flash_decode.write_rows(
      (scratch['out'], scratch['lse']), (results.out, results.lse)
    )
    return
  own_lse, lses = _shared_lses(launch, split, scratch['lse'], results.lses)
  own_lse[...] = lse
  _meet(launch, scratch['met'].at[0])
  merged_lse, weight = _weigh(lse, [each[...] for each in lses])
  scratch['out'][...] = out * flash_decode.along_columns(weight, out.shape)
  flash_decode.write_rows((scratch['out'],), (results.shares.at[split],))
  # From here on no block reads the shared memory of another.
  _meet(launch, scratch['met'].at[1])
  _add_up(launch, split, results.shares, results.out)

  @pl.when(split == 0)
  def _():
    scratch['lse'][...] = merged_lse
    flash_decode.write_rows((scratch['lse'],), (results.lse,))


def _make_tile(tile, raw_query, rows) -> None:
  """Makes a tile of the queries, 0 in the rows beyond."""
  query = raw_query[...]
  row = jax.lax.broadcasted_iota(jnp.int32, query.shape, 0)
  query = jnp.where(row < rows, query, jnp.zeros_like(query))
  tile[...] = query.astype(tile.dtype)
  plgpu.commit_smem()


def _meet(launch, barrier) -> None:
  """Waits until every block of the cluster has arrived, and sees its stores."""
  _fence(launch)
  plgpu.commit_smem()  # all threads' stores, which a few threads announce
  plgpu.barrier_arrive(barrier)
  plgpu.barrier_wait(barrier)
  _fence(launch)


def _fence(launch) -> None:
  """Orders memory for the cluster: barriers order it for a block alone."""
  if launch.interpret is not None:
    return
  ir = importlib.import_module('jaxlib.mlir.ir')
  llvm = importlib.import_module('jaxlib.mlir.dialects.llvm')

  def fence(context):
    del context
    void = ir.Type.parse('!llvm.void')
    code = 'fence.acq_rel.cluster;'
    llvm.inline_asm(void, [], code, '', has_side_effects=True)

  inline: Any = plgpu.inline_mgpu()(fence)
  inline()


def _shared_lses(launch, split, lse, stand_in):
  """Returns where this block and where all put their log-sum-exp."""
  splits = range(launch.splits)
  if launch.interpret is None:
    return lse, [plgpu.cluster_ref(lse, {'split': i}) for i in splits]
  return stand_in.at[split], [stand_in.at[i] for i in splits]


def _weigh(lse, lses):
  """Returns log-sum-exp of all blocks, and the weight of this block's share."""
  top = functools.reduce(jnp.maximum, lses)
  shift = jnp.where(top == -jnp.inf, 0.0, top)
  total = sum(jnp.exp(each - shift) for each in lses)
  safe = jnp.where(total == 0, 1.0, total)
  merged = jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe))
  return merged, jnp.exp(lse - shift) / safe


def _add_up(launch, split, shares, out) -> None:
  """Writes the sums of every `splits`-th group of rows."""
  rows, width = out.shape
  unit = rows_at_once(width)
  for group in range(-(-rows // (unit * launch.splits))):
    row = (group * launch.splits + split) * unit

    @pl.when(row < rows)
    def _(row=row):
      slab = pl.ds(row, unit)
      parts = [shares.at[i, slab][...] for i in range(launch.splits)]
      out[slab] = functools.reduce(jnp.add, parts)
