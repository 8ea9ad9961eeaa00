"""Flash-decode in one launch: the programs of a row merge among themselves.

The loop over blocks is that of `flash_decode`. What stands beside it there as
programs of XLA is inside here. Queries are taken as they lie, in their own
dtype, and made a tile in shared memory; where slots are ordered, what a row
must read follows from scalars that are leaves already; and the splits of a row
and kv head are one cluster of thread blocks. These tell each other their
log-sum-exp through distributed shared memory, weigh their outputs by it, leave
them in global memory, and each adds up some of the rows. A counter there, of
the programs that have come so far, would have to be zeroed by another launch;
a cluster has barriers of its own.
"""

import functools
import importlib
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from kvjax.kernels.hopper import flash_decode
from kvjax.kernels.hopper.spans import span_of
from kvjax.kernels.hopper.tiling import ROWS, Launch


# Jitted of itself, so that a program lowers it once for all its layers.
@functools.partial(jax.jit, static_argnames='launch')
def flash_decode_cluster(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  positions: jax.Array,
  held: jax.Array,
  span: jax.Array,
  launch: Launch,
) -> tuple[jax.Array, jax.Array]:
  """Returns attention, merged.

  Args:
    queries: `[B, K, G T, H]`, row `g T + t` of each kv head, as they lie.
    keys, values, positions, held: as `flash_decode.flash_decode`.
    span: int32 `[1]` where slots are ordered: the first that no row has filled;
      else `[B, 3]` as `spans.spans` returns.
    launch: static choices; its splits are blocks of one cluster.

  Returns:
    Output `[B, K, rows, E]`, rows being G T rounded up to what a warpgroup
    moves at once, and log-sum-exp `[B, K, rows]`, rounded up to 8, float32; 0
    and -inf where a row saw nothing.
  """
  batch, heads, rows = queries.shape[:3]
  width = values.shape[3]
  whole, unit = -(-rows // 8) * 8, slab(width)
  lead = batch, heads
  types = [(*lead, whole, width), (*lead, whole)]
  if launch.splits > 1:
    types[0] = (*lead, -(-rows // unit) * unit, width)
    types.append((*lead, launch.splits, whole, width))
    if launch.interpret is not None:  # it has no distributed shared memory
      types.append((*lead, launch.splits, ROWS))

  def kernel(*refs, **scratch):
    _program(launch, *refs, **scratch)

  call = plgpu.kernel(
    kernel,
    out_type=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in types],
    scratch_types=_scratch(launch, queries, keys, values),
    grid=(heads, batch),
    grid_names=('head', 'row'),
    cluster=(launch.splits,),
    cluster_names=('split',),
    num_threads=2,
    thread_name='warpgroup',
    kernel_name='flash_decode_cluster',
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    **({} if launch.interpret is None else {'interpret': launch.interpret}),
  )
  out, lse, *_ = call(queries, keys, values, positions, held, span)
  return out, lse


def slab(width: int) -> int:
  """Returns how many rows of values 128 threads add up at once."""
  return 1 if width % 128 == 0 else 2


def _scratch(launch: Launch, queries, keys, values) -> dict[str, Any]:
  """Returns shared memory and barriers of one program, by name."""
  found = flash_decode.scratch(launch, keys, values)
  shape = ROWS, queries.shape[3]
  found['raw_s'] = plgpu.SMEM(shape, queries.dtype)
  found['q_s'] = flash_decode.tile_of(keys.dtype)(shape)
  if launch.splits > 1:
    found['met'] = plgpu.ClusterBarrier(
      collective_axes=('split',), num_barriers=2
    )
  return found


def _program(
    launch: Launch,
    q_g, k_g, v_g, positions_g, held_g, span_g, out_g, lse_g, *peers_g,
    **scratch: Any,
) -> None:  # fmt: skip
  """One program: `_g` lies in global memory, `_s` in shared."""
  split, h, b, warpgroup = (
    jax.lax.axis_index(name) for name in ('split', 'head', 'row', 'warpgroup')
  )
  asked = [positions_g[b, t] for t in range(positions_g.shape[1])]
  if launch.ordered:
    first, end, full = _span(launch, asked, span_g[0], k_g.shape[2])
  else:
    first, end, full = (span_g[b, i] for i in range(3))
  begin, count = flash_decode.share(first, end, split, launch)
  own = h if held_g.shape[1] == k_g.shape[1] else 0
  streams = k_g.at[b, h], held_g.at[b, own], v_g.at[b, h]

  @pl.when(warpgroup == flash_decode.COMPUTE)
  def _():
    plgpu.set_max_registers(232, action='increase')
    peers = [ref.at[b, h] for ref in peers_g]
    results = out_g.at[b, h], lse_g.at[b, h]
    turn = asked, begin, count, full
    _compute(launch, q_g.shape[2], split, turn, results, peers, **scratch)

  @pl.when(warpgroup == flash_decode.LOAD)
  def _():
    plgpu.set_max_registers(40, action='decrease')
    target = scratch['raw_s'].at[pl.ds(0, q_g.shape[2])]
    plgpu.copy_gmem_to_smem(q_g.at[b, h], target, scratch['q_full'])
    flash_decode.load(launch, streams, begin, count, **scratch)


def _span(launch, asked, filled, slots):
  """Returns `span_of` of scalars."""
  last, earliest = jnp.int32(-1), jnp.int32(slots)
  for position in asked:
    last = jnp.maximum(last, position)
    none = position < 0
    earliest = jnp.minimum(earliest, jnp.where(none, slots, position))
  most = jnp.minimum(filled, slots)
  return span_of(last + 1, earliest, most, launch.rule)


def _compute(
    launch, rows, split, turn, results, peers,
    *,
    raw_s, q_s, out_s, lse_s, q_full, met: Any = None, **ring,
):  # fmt: skip
  plgpu.barrier_wait(q_full)
  _fill(q_s, raw_s, rows)
  out, lse = flash_decode.attend_blocks(launch, q_s, *turn, **ring)
  if launch.splits == 1:
    out_s[...], lse_s[...] = out, lse
    flash_decode.write((out_s, lse_s), results)
    return
  outs_g, *stand_in = peers
  own, others = _lses(launch, split, lse_s, stand_in)
  own[...] = lse
  _meet(launch, met.at[0])
  whole, weight = _weigh(lse, [each[...] for each in others])
  out_s[...] = out * flash_decode.columns(weight, out.shape)
  flash_decode.write((out_s,), (outs_g.at[split],))
  _meet(launch, met.at[1])  # nobody needs another's shared memory from here on
  _add_up(launch, split, outs_g, results[0])

  @pl.when(split == 0)
  def _():
    lse_s[...] = whole
    flash_decode.write((lse_s,), results[1:])


def _fill(q_s, raw_s, rows):
  """Makes a tile of the queries, 0 in the rows beyond."""
  query = raw_s[...]
  row = jax.lax.broadcasted_iota(jnp.int32, query.shape, 0)
  query = jnp.where(row < rows, query, jnp.zeros_like(query))
  q_s[...] = query.astype(q_s.dtype)
  plgpu.commit_smem()


def _meet(launch, barrier):
  """Waits until every block of the cluster has come so far, and sees it."""
  _fence(launch)
  plgpu.commit_smem()  # all threads' stores, of which a few tell the others
  plgpu.barrier_arrive(barrier)
  plgpu.barrier_wait(barrier)
  _fence(launch)


def _fence(launch):
  """Orders memory for the cluster: barriers say no more than for a block."""
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


def _lses(launch, split, lse_s, stand_in):
  """Returns where this block and where all put their log-sum-exp."""
  splits = range(launch.splits)
  if launch.interpret is None:
    return lse_s, [plgpu.cluster_ref(lse_s, {'split': i}) for i in splits]
  (lses_g,) = stand_in
  return lses_g.at[split], [lses_g.at[i] for i in splits]


def _weigh(lse, lses):
  """Returns log-sum-exp of all blocks, and the weight of this one's share."""
  top = functools.reduce(jnp.maximum, lses)
  shift = jnp.where(top == -jnp.inf, 0.0, top)
  total = sum(jnp.exp(each - shift) for each in lses)
  safe = jnp.where(total == 0, 1.0, total)
  whole = jnp.where(total == 0, -jnp.inf, shift + jnp.log(safe))
  return whole, jnp.exp(lse - shift) / safe


def _add_up(launch, split, outs_g, out_g):
  """Writes the sums of every `splits`-th slab of rows."""
  rows, width = out_g.shape
  unit = slab(width)
  for turn in range(-(-rows // (unit * launch.splits))):
    row = (turn * launch.splits + split) * unit

    @pl.when(row < rows)
    def _(row=row):
      at = pl.ds(row, unit)
      shares = [outs_g.at[i, at][...] for i in range(launch.splits)]
      out_g[at] = functools.reduce(jnp.add, shares)
