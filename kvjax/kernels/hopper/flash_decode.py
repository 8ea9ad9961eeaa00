"""Split-KV flash-decode for Hopper GPUs, in Pallas Mosaic GPU.

One program serves one split of the slots of one kv head and row. A loader
warpgroup streams blocks of keys, values and positions through a ring of
shared memory (TMA). A computing warpgroup multiplies them with all query rows
of that head at once (GQA packing), so that each key is read once, and keeps
an online softmax in float32 registers. The kernel reads where the blocks of a
row begin and end, so that time follows the filled length of every row, not the
capacity. Flash-Decoding (Dao et al. 2023); FlashAttention-3, arXiv 2407.08608.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from kvjax.kernels.hopper.tiling import LANES, ROWS, Launch

COMPUTE, LOAD = 0, 1  # warpgroups
LOG2E = math.log2(math.e)


class Operands(NamedTuple):
  """What a launch reads: arrays outside the kernel, references inside.

  Attributes:
    queries: `[B, K, 64, H]`, row `g T + t` of each kv head, padded to a tile.
    keys: `[B, K, S, H]`, S a multiple of the block.
    values: `[B, K, S, E]`.
    positions: int32 `[B, T]` of the queries, -1 where there is none.
    slot_positions: int32 `[B, 1 | K, S]`, -1 where a slot is empty.
    span: int32 `[B, 3]` of `spans.spans`.
  """

  queries: Any
  keys: Any
  values: Any
  positions: Any
  slot_positions: Any
  span: Any

  def streams(self, row: Any, head: Any) -> tuple[Any, Any, Any]:
    """Returns keys, slot positions and values of one row and kv head."""
    one_book = self.slot_positions.shape[1] != self.keys.shape[1]
    return (
      self.keys.at[row, head],
      self.slot_positions.at[row, 0 if one_book else head],
      self.values.at[row, head],
    )

  def query_positions(self, row: Any) -> list[Any]:
    """Returns the positions of a row's query tokens, a scalar each."""
    tokens = range(self.positions.shape[1])
    return [self.positions[row, token] for token in tokens]


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Which blocks of slots a program reads, for which queries.

  Attributes:
    begin: the first block.
    count: how many blocks.
    full: the slot below which each slot that is read holds a token.
    query_positions: of the query tokens, a scalar each.
  """

  begin: Any
  count: Any
  full: Any
  query_positions: list[Any]


@dataclasses.dataclass(frozen=True)
class BlockBuffers:
  """A ring of blocks in shared memory, and their barriers.

  Attributes:
    keys: `[stages, block, H]`.
    values: `[stages, block, E]`.
    block_positions: int32 `[stages, block]`, positions of the slots.
    keys_full: a block's keys and positions have arrived.
    values_full: a block's values have arrived.
    free: the computing warpgroup has read a block.
  """

  keys: Any
  values: Any
  block_positions: Any
  keys_full: Any
  values_full: Any
  free: Any


# Jitted, so that a program lowers the kernel once for all its layers.
@functools.partial(jax.jit, static_argnames=('launch', 'groups'))
def flash_decode(
  operands: Operands, launch: Launch, groups: int
) -> tuple[jax.Array, jax.Array]:
  """Returns attention of each split, to be merged by log-sum-exp.

  Args:
    operands: what is read.
    launch: static choices.
    groups: G.

  Returns:
    Output `[splits, B, K, rows, E]` and log-sum-exp `[splits, B, K, rows]`,
    float32, rows being G T rounded up to 8; 0 and -inf where a split saw
    nothing.
  """
  batch, heads = operands.queries.shape[:2]
  rows = -(-groups * operands.positions.shape[1] // 8) * 8
  lead = (launch.splits, batch, heads, rows)
  value_width = operands.values.shape[3]

  def kernel(*refs, **scratch):
    _run_program(launch, Operands(*refs[:6]), refs[6:], scratch)

  call = plgpu.kernel(
    kernel,
    out_type=[
      jax.ShapeDtypeStruct((*lead, value_width), jnp.float32),
      jax.ShapeDtypeStruct(lead, jnp.float32),
    ],
    scratch_types=_scratch_types(launch, operands),
    grid=(launch.splits, heads, batch),
    grid_names=('split', 'head', 'row'),
    kernel_name='flash_decode',
    **program_options(launch),
  )
  out, lse = call(*operands)
  return out, lse


def program_options(launch: Launch) -> dict[str, Any]:
  """Returns options of `plgpu.kernel` for two warpgroups a program."""
  options: dict[str, Any] = {
    'num_threads': 2,
    'thread_name': 'warpgroup',
    'compiler_params': plgpu.CompilerParams(
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
  }
  if launch.interpret is not None:
    options['interpret'] = launch.interpret
  return options


def _scratch_types(launch: Launch, operands: Operands) -> dict[str, Any]:
  """Returns shared memory and barriers of one program, by name."""
  query = tile_type(operands.queries.dtype)((ROWS, operands.queries.shape[3]))
  return {'query': query} | scratch_types(launch, operands)


def tile_type(dtype):
  """Returns what makes shared memory as the tensor cores read it."""
  swizzled = plgpu.TilingTransform((8, LANES)), plgpu.SwizzleTransform(128)
  return functools.partial(plgpu.SMEM, dtype=dtype, transforms=swizzled)


def scratch_types(launch: Launch, operands: Operands) -> dict[str, Any]:
  """Returns shared memory and barriers of one program, except of queries.

  JAX lays them out in the order of their names: another name may be another
  program than the one that was measured.
  """
  value_width = operands.values.shape[3]
  stages = (launch.stages, launch.block)
  tile = tile_type(operands.keys.dtype)
  return {
    'keys': tile((*stages, operands.keys.shape[3])),
    'values': tile((*stages, value_width)),
    'block_positions': plgpu.SMEM(stages, jnp.int32),
    'out': plgpu.SMEM((ROWS, value_width), jnp.float32),
    'lse': plgpu.SMEM((ROWS,), jnp.float32),
    'query_full': plgpu.Barrier(),
    # Keys and positions arrive together.
    'keys_full': plgpu.Barrier(num_arrivals=2, num_barriers=launch.stages),
    'values_full': plgpu.Barrier(num_barriers=launch.stages),
    'free': plgpu.Barrier(num_barriers=launch.stages),
  }


def buffers_of(scratch: dict[str, Any]) -> BlockBuffers:
  """Returns the buffers of blocks among what a program has of shared memory."""
  names = (field.name for field in dataclasses.fields(BlockBuffers))
  return BlockBuffers(**{name: scratch[name] for name in names})


def _run_program(launch, operands: Operands, results, scratch) -> None:
  """Runs one program of the grid: one split of a kv head and row."""
  split, head, row, warpgroup = (
    jax.lax.axis_index(name) for name in ('split', 'head', 'row', 'warpgroup')
  )
  first, end, full = (operands.span[row, i] for i in range(3))
  begin, count = share_blocks(first, end, split, launch)
  streams = operands.streams(row, head)
  out, lse = (result.at[split, row, head] for result in results)

  @pl.when(warpgroup == COMPUTE)
  def _():
    # Registers move from the loader, which needs few, to the accumulators.
    plgpu.set_max_registers(232, action='increase')
    blocks = Blocks(begin, count, full, operands.query_positions(row))
    plgpu.barrier_wait(scratch['query_full'])
    scratch['out'][...], scratch['lse'][...] = attend_blocks(
      launch, scratch['query'], blocks, buffers_of(scratch)
    )
    write_rows((scratch['out'], scratch['lse']), (out, lse))

  @pl.when(warpgroup == LOAD)
  def _():
    plgpu.set_max_registers(40, action='decrease')
    plgpu.copy_gmem_to_smem(
      operands.queries.at[row, head], scratch['query'], scratch['query_full']
    )
    load_blocks(launch, streams, begin, count, buffers_of(scratch))


def share_blocks(first, end, split, launch: Launch):
  """Returns the first block of a split and how many it has; 0 if none."""
  low = jax.lax.div(first, launch.block)
  high = jax.lax.div(end + (launch.block - 1), launch.block)
  each = jax.lax.div(high - low + (launch.splits - 1), launch.splits)
  begin = low + split * each
  return begin, jnp.clip(high - begin, 0, each)


def load_blocks(
  launch: Launch, streams, begin, count, buffers: BlockBuffers
) -> None:
  """Streams the blocks of a split through its buffers."""
  keys, slot_positions, values = streams
  copies = (
    (keys, buffers.keys, buffers.keys_full),
    (slot_positions, buffers.block_positions, buffers.keys_full),
    (values, buffers.values, buffers.values_full),
  )

  @pl.loop(0, count)
  def _(i):
    stage = jax.lax.rem(i, launch.stages)
    slots = pl.ds((begin + i) * launch.block, launch.block)

    @pl.when(i >= launch.stages)
    def _():
      plgpu.barrier_wait(buffers.free.at[stage])

    for source, target, full in copies:
      plgpu.copy_gmem_to_smem(
        source.at[slots], target.at[stage], full.at[stage]
      )

  # A barrier must not be left with an arrival that nobody waited for.
  @pl.loop(jnp.maximum(count - launch.stages, 0), count)
  def _(i):
    plgpu.barrier_wait(buffers.free.at[jax.lax.rem(i, launch.stages)])


def attend_blocks(launch: Launch, query, blocks: Blocks, buffers: BlockBuffers):
  """Returns output `[64, E]` and log-sum-exp `[64]` of a split's blocks.

  Args:
    launch: static choices.
    query: a tile, in shared memory or in registers.
    blocks: what is read.
    buffers: through which it arrives.
  """
  start = (
    jnp.full((ROWS,), -jnp.inf, jnp.float32),
    jnp.zeros((ROWS,), jnp.float32),
    jnp.zeros((ROWS, buffers.values.shape[-1]), jnp.float32),
  )
  add_block = functools.partial(_add_block, launch, query, blocks, buffers)
  sums = jax.lax.fori_loop(0, blocks.count, add_block, start)
  return _normalize(*sums)


def _add_block(launch, query, blocks: Blocks, buffers: BlockBuffers, i, carry):
  """Adds block i of a split to the running softmax, in powers of 2."""
  top, total, out = carry
  stage = jax.lax.rem(i, launch.stages)
  plgpu.barrier_wait(buffers.keys_full.at[stage])
  scores = _multiply_transposed(launch, query, buffers.keys.at[stage])
  scores = _scale(launch, scores)
  seen = _seen(launch, blocks.query_positions, buffers.block_positions[stage])
  scores = jnp.where(seen, scores, -jnp.inf)
  new = jnp.maximum(top, jnp.max(scores, axis=1))
  # -inf less -inf would be NaN in a row that has seen nothing so far.
  shift = jnp.where(new == -jnp.inf, 0.0, new)
  keep = jnp.exp2(top - shift)
  weights = jnp.exp2(scores - along_columns(shift, scores.shape))
  total = total * keep + jnp.sum(weights, axis=1)
  plgpu.barrier_wait(buffers.values_full.at[stage])

  # An empty slot may hold NaN, and the product of its weight, 0, with NaN is
  # NaN. Only blocks beyond `full` have empty slots.
  @pl.when((blocks.begin + i + 1) * launch.block > blocks.full)
  def _():
    values = buffers.values[stage]
    empty = buffers.block_positions[stage] < 0
    zero = jnp.zeros_like(values)
    empty = along_columns(empty, values.shape)
    buffers.values[stage] = jnp.where(empty, zero, values)
    plgpu.commit_smem()

  weights = weights.astype(buffers.values.dtype)
  added = _multiply(launch, weights, buffers.values.at[stage], out.shape)
  plgpu.barrier_arrive(buffers.free.at[stage])
  return new, total, out * along_columns(keep, out.shape) + added


def _multiply_transposed(launch: Launch, query, keys):
  """Returns `query @ keys.T` in float32."""
  if launch.interpret is not None:
    # The interpreter has no transposed operand of a product.
    return _multiply_interpreted(query[...], keys[...].T)
  keys = keys.transpose((1, 0))
  return _multiply_tiles(query, keys, (ROWS, launch.block))


def _multiply(launch: Launch, weights, values, shape):
  """Returns `weights @ values` in float32."""
  if launch.interpret is not None:
    return _multiply_interpreted(weights[...], values[...])
  return _multiply_tiles(weights, values, shape)


def _multiply_interpreted(left, right):
  product = jnp.dot(left, right, preferred_element_type=jnp.float32)
  # Ordinary loads, unlike those of a tensor core, must be ordered before the
  # loader fills the slot again.
  plgpu.commit_smem()
  return product


def _multiply_tiles(left, right, shape):
  def accumulate(accumulator):
    plgpu.wgmma(accumulator, left, right)
    return accumulator[...]

  return pl.run_scoped(
    accumulate, plgpu.WGMMAAccumulatorRef(shape, jnp.float32)
  )


def _scale(launch: Launch, products):
  """Returns scores times log2(e): the softmax is in powers of 2."""
  if launch.softcap is None:
    return products * (launch.scale * LOG2E)
  capped = jnp.tanh(products * (launch.scale / launch.softcap))
  return capped * (launch.softcap * LOG2E)


def _seen(launch: Launch, query_positions, slot_positions):
  """Returns which of the keys at `slot_positions [block]` each row sees."""
  shape = (ROWS, launch.block)
  tokens = len(query_positions)
  if tokens == 1:
    seen = launch.rule.sees(query_positions[0], slot_positions)
    seen = seen & (query_positions[0] >= 0)
    return jax.lax.broadcast_in_dim(seen, shape, (1,))
  token = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, shape, 0), tokens)
  rows = jnp.full(shape, -1, jnp.int32)
  for t, position in enumerate(query_positions):
    rows = jnp.where(token == t, position, rows)
  slot_positions = jax.lax.broadcast_in_dim(slot_positions, shape, (1,))
  return launch.rule.sees(rows, slot_positions) & (rows >= 0)


def along_columns(x, shape):
  """Repeats `x [rows]` along the columns."""
  return jax.lax.broadcast_in_dim(x, shape, (0,))


def _normalize(top, total, out):
  """Returns output and log-sum-exp of sums scaled by `2 ** -top`."""
  empty = total == 0
  safe = jnp.where(empty, 1.0, total)
  lse = jnp.where(empty, -jnp.inf, top / LOG2E + jnp.log(safe))
  return out / along_columns(safe, out.shape), lse


def write_rows(sources, targets) -> None:
  """Copies the first rows of shared memory to global memory."""
  plgpu.commit_smem()
  for source, target in zip(sources, targets, strict=True):
    rows = pl.ds(0, target.shape[0])
    plgpu.copy_smem_to_gmem(source.at[rows], target)
  plgpu.wait_smem_to_gmem(0)
