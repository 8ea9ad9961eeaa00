"""Split-KV flash-decode for Hopper GPUs, in Pallas Mosaic GPU.

One program serves one split of the slots of one kv head and row. A loader
warpgroup streams blocks of keys, values and positions through a ring of
shared memory (TMA); a computing warpgroup multiplies them with all query rows
of that head at once (GQA packing), so that each key is read once, and keeps
an online softmax in float32 registers. Where the blocks of a row begin and end
is read inside, so time follows the filled length of every row, not the
capacity. Flash-Decoding (Dao et al. 2023); FlashAttention-3, arXiv 2407.08608.
"""

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from kvjax.kernels.hopper.tiling import LANES, ROWS, Launch

COMPUTE, LOAD = 0, 1  # warpgroups
LOG2E = math.log2(math.e)


# Jitted of itself, so that a program lowers it once for all its layers.
@functools.partial(jax.jit, static_argnames=('launch', 'groups'))
def flash_decode(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  positions: jax.Array,
  held: jax.Array,
  span: jax.Array,
  launch: Launch,
  groups: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns attention of each split, to be merged by log-sum-exp.

  Args:
    queries: `[B, K, 64, H]`, row `g T + t` of each kv head, padded to a tile.
    keys: `[B, K, S, H]`, S a multiple of the block.
    values: `[B, K, S, E]`.
    positions: int32 `[B, T]` of the queries, -1 where there is none.
    held: int32 `[B, 1 | K, S]`, positions of the slots, -1 where empty.
    span: int32 `[B, 3]`: first slot and end of what a row must read, and the
      slot below which each of these holds a token.
    launch: static choices.
    groups: G.

  Returns:
    Output `[splits, B, K, rows, E]` and log-sum-exp `[splits, B, K, rows]`,
    float32, rows being G T rounded up to 8; 0 and -inf where a split saw
    nothing.
  """
  batch, heads = queries.shape[:2]
  rows = -(-groups * positions.shape[1] // 8) * 8
  lead = (launch.splits, batch, heads, rows)

  def kernel(*refs, **scratch):
    _program(launch, *refs, **scratch)

  call = plgpu.kernel(
    kernel,
    out_type=[
      jax.ShapeDtypeStruct((*lead, values.shape[3]), jnp.float32),
      jax.ShapeDtypeStruct(lead, jnp.float32),
    ],
    scratch_types=_scratch(launch, queries, values),
    grid=(launch.splits, heads, batch),
    grid_names=('split', 'head', 'row'),
    num_threads=2,
    thread_name='warpgroup',
    kernel_name='flash_decode',
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    **({} if launch.interpret is None else {'interpret': launch.interpret}),
  )
  out, lse = call(queries, keys, values, positions, held, span)
  return out, lse


def _scratch(launch: Launch, queries, values) -> dict[str, Any]:
  """Returns shared memory and barriers of one program, by name."""
  tile = tile_of(queries.dtype)
  query = {'q_s': tile((ROWS, queries.shape[3]))}
  return query | scratch(launch, queries, values)


def tile_of(dtype):
  """Returns what makes shared memory as the tensor cores read it."""
  swizzled = plgpu.TilingTransform((8, LANES)), plgpu.SwizzleTransform(128)
  return functools.partial(plgpu.SMEM, dtype=dtype, transforms=swizzled)


def scratch(launch: Launch, keys, values) -> dict[str, Any]:
  """Returns what a program has of shared memory and barriers, but queries."""
  value_width = values.shape[3]
  ring = (launch.stages, launch.block)
  tile = tile_of(keys.dtype)
  return {
    'k_s': tile((*ring, keys.shape[3])),
    'v_s': tile((*ring, value_width)),
    'held_s': plgpu.SMEM(ring, jnp.int32),
    'out_s': plgpu.SMEM((ROWS, value_width), jnp.float32),
    'lse_s': plgpu.SMEM((ROWS,), jnp.float32),
    'q_full': plgpu.Barrier(),
    # Keys and positions arrive together.
    'k_full': plgpu.Barrier(num_arrivals=2, num_barriers=launch.stages),
    'v_full': plgpu.Barrier(num_barriers=launch.stages),
    'free': plgpu.Barrier(num_barriers=launch.stages),
  }


def _program(
    launch: Launch,
    q_g, k_g, v_g, positions_g, held_g, span_g, out_g, lse_g,
    **scratch: Any,
) -> None:  # fmt: skip
  """One program: `_g` lies in global memory, `_s` in shared."""
  split, h, b, warpgroup = (
    jax.lax.axis_index(name) for name in ('split', 'head', 'row', 'warpgroup')
  )
  first, end, full = (span_g[b, i] for i in range(3))
  begin, count = share(first, end, split, launch)
  own = h if held_g.shape[1] == k_g.shape[1] else 0
  streams = k_g.at[b, h], held_g.at[b, own], v_g.at[b, h]
  results = out_g.at[split, b, h], lse_g.at[split, b, h]

  @pl.when(warpgroup == COMPUTE)
  def _():
    plgpu.set_max_registers(232, action='increase')
    asked = [positions_g[b, t] for t in range(positions_g.shape[1])]
    _compute(launch, asked, begin, count, full, results, **scratch)

  @pl.when(warpgroup == LOAD)
  def _():
    plgpu.set_max_registers(40, action='decrease')
    plgpu.copy_gmem_to_smem(q_g.at[b, h], scratch['q_s'], scratch['q_full'])
    load(launch, streams, begin, count, **scratch)


def _compute(
    launch, asked, begin, count, full, results,
    *,
    q_s, out_s, lse_s, q_full, **ring,
):  # fmt: skip
  plgpu.barrier_wait(q_full)
  out_s[...], lse_s[...] = attend_blocks(
    launch, q_s, asked, begin, count, full, **ring
  )
  write((out_s, lse_s), results)


def attend_blocks(
    launch, query, asked, begin, count, full,
    *,
    k_s, v_s, held_s, k_full, v_full, free,
):  # fmt: skip
  """Returns output `[64, E]` and log-sum-exp `[64]` of this split's blocks.

  Args:
    launch: static choices.
    query: a tile, in shared memory or in registers.
    asked: positions of the query tokens, a scalar each.
    begin: first block.
    count: of blocks.
    full: the slot below which each holds a token.
    k_s, v_s, held_s: rings of blocks.
    k_full, v_full, free: their barriers.
  """
  refs = k_s, v_s, held_s, k_full, v_full, free
  turn = functools.partial(_turn, launch, asked, query, *refs, begin, full)
  start = (
    jnp.full((ROWS,), -jnp.inf, jnp.float32),
    jnp.zeros((ROWS,), jnp.float32),
    jnp.zeros((ROWS, v_s.shape[-1]), jnp.float32),
  )
  return _finish(*jax.lax.fori_loop(0, count, turn, start))


def write(sources, targets):
  """Copies the first rows of shared memory to global memory."""
  plgpu.commit_smem()
  for source, target in zip(sources, targets, strict=True):
    rows = pl.ds(0, target.shape[0])
    plgpu.copy_smem_to_gmem(source.at[rows], target)
  plgpu.wait_smem_to_gmem(0)


def load(
    launch, streams, begin, count,
    *,
    k_s, v_s, held_s, k_full, v_full, free, **_,
):  # fmt: skip
  """Streams the blocks of a split through its rings."""
  targets = (k_s, k_full), (held_s, k_full), (v_s, v_full)

  @pl.loop(0, count)
  def _(i):
    at = jax.lax.rem(i, launch.stages)
    slots = pl.ds((begin + i) * launch.block, launch.block)

    @pl.when(i >= launch.stages)
    def _():
      plgpu.barrier_wait(free.at[at])

    for stream, (target, ready) in zip(streams, targets, strict=True):
      plgpu.copy_gmem_to_smem(stream.at[slots], target.at[at], ready.at[at])

  @pl.loop(jnp.maximum(count - launch.stages, 0), count)
  def _(i):  # no barrier may be left with an arrival that nobody saw
    plgpu.barrier_wait(free.at[jax.lax.rem(i, launch.stages)])


def share(first, end, split, launch: Launch):
  """Returns the first block of a split and how many it has; 0 if none."""
  low = jax.lax.div(first, launch.block)
  high = jax.lax.div(end + (launch.block - 1), launch.block)
  each = jax.lax.div(high - low + (launch.splits - 1), launch.splits)
  begin = low + split * each
  return begin, jnp.clip(high - begin, 0, each)


def _turn(
    launch, asked, query, k_s, v_s, held_s, k_full, v_full, free, begin, full,
    i, carry,
):  # fmt: skip
  """Adds block i of this split to the running softmax, in powers of 2."""
  top, total, out = carry
  at = jax.lax.rem(i, launch.stages)
  plgpu.barrier_wait(k_full.at[at])
  scores = _product(
    launch, query, k_s.at[at], (ROWS, launch.block), turned=True
  )
  scores = _scored(launch, scores)
  seen = _seen(launch, asked, held_s[at])
  scores = jnp.where(seen, scores, -jnp.inf)
  new = jnp.maximum(top, jnp.max(scores, axis=1))
  shift = jnp.where(new == -jnp.inf, 0.0, new)  # so that no -inf - -inf is NaN
  keep = jnp.exp2(top - shift)
  weights = jnp.exp2(scores - columns(shift, scores.shape))
  total = total * keep + jnp.sum(weights, axis=1)
  plgpu.barrier_wait(v_full.at[at])

  @pl.when((begin + i + 1) * launch.block > full)
  def _():  # 0 NaN is NaN: what an empty slot holds must not be multiplied
    values, empty = v_s[at], held_s[at] < 0
    zero = jnp.zeros_like(values)
    empty = jax.lax.broadcast_in_dim(empty, values.shape, (0,))
    v_s[at] = jnp.where(empty, zero, values)
    plgpu.commit_smem()

  weights = weights.astype(v_s.dtype)
  added = _product(launch, weights, v_s.at[at], out.shape)
  plgpu.barrier_arrive(free.at[at])
  return new, total, out * columns(keep, out.shape) + added


def _product(launch: Launch, left, right, shape, turned: bool = False):
  """Returns `left @ right` or `left @ right.T` in float32."""
  if launch.interpret is not None:  # it has no transposed operand of a product
    other = right[...].T if turned else right[...]
    found = jnp.dot(left[...], other, preferred_element_type=jnp.float32)
    plgpu.commit_smem()  # ordinary loads end before the slot is filled again
    return found

  def body(accumulator):
    other = right.transpose((1, 0)) if turned else right
    plgpu.wgmma(accumulator, left, other)
    return accumulator[...]

  return pl.run_scoped(body, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def _scored(launch: Launch, products):
  """Returns scores times log2(e)."""
  if launch.softcap is None:
    return products * (launch.scale * LOG2E)
  capped = jnp.tanh(products * (launch.scale / launch.softcap))
  return capped * (launch.softcap * LOG2E)


def _seen(launch: Launch, asked, held):
  """Returns which of the keys at `held [block]` each row sees."""
  shape = (ROWS, launch.block)
  if len(asked) == 1:
    seen = launch.rule.sees(asked[0], held) & (asked[0] >= 0)
    return jax.lax.broadcast_in_dim(seen, shape, (1,))
  token = jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, shape, 0), len(asked))
  rows = jnp.full(shape, -1, jnp.int32)
  for t, position in enumerate(asked):
    rows = jnp.where(token == t, position, rows)
  held = jax.lax.broadcast_in_dim(held, shape, (1,))
  return launch.rule.sees(rows, held) & (rows >= 0)


def columns(x, shape):
  """Repeats `x [rows]` along the columns."""
  return jax.lax.broadcast_in_dim(x, shape, (0,))


def _finish(top, total, out):
  """Returns output and log-sum-exp of sums scaled by `2 ** -top`."""
  empty = total == 0
  safe = jnp.where(empty, 1.0, total)
  lse = jnp.where(empty, -jnp.inf, top / LOG2E + jnp.log(safe))
  return out / columns(safe, out.shape), lse
