"""A split-KV flash-decode in Triton as a peer. Needs torch and triton.

This is what a user of torch would write (Flash-Decoding, Dao et al. 2023): one
program a split and kv head, whose query heads are the rows of one tile; a
second kernel merges partial results by log-sum-exp. With TRITON_INTERPRET=1
Triton interprets the kernel on a CPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

torch: Any = importlib.import_module('torch')
triton: Any = importlib.import_module('triton')
tl: Any = importlib.import_module('triton.language')

# Triton's interpreter reads annotations as text, so the name must be short.
if TYPE_CHECKING:
  constexpr = Any
else:
  constexpr = tl.constexpr

BLOCK = 64  # slots that one turn of the loop reads
ROWS = 16  # tensor cores multiply at least as many rows
LOG2E = 1.4426950408889634
CORES = 132  # of an H100 SXM or H200


def attend(q: Any, k: Any, v: Any) -> Any:
  """Returns attention of `[B, K, G, H]` to `[B, K, S, H]`, in q's dtype."""
  batch, heads, groups, width = q.shape
  programs = batch * heads
  slots = k.shape[2]
  splits = choose_splits(programs, slots)
  rows = max(ROWS, triton.next_power_of_2(groups))
  parts = torch.empty(
    (programs, splits, groups, width), dtype=torch.float32, device=q.device
  )
  sums = torch.empty(
    (programs, splits, groups), dtype=torch.float32, device=q.device
  )
  out = torch.empty_like(q)
  scale = width**-0.5 * LOG2E
  shapes = {'GROUPS': groups, 'WIDTH': width, 'SPLITS': splits}
  _split[(programs, splits)](
    q, k, v, parts, sums, slots, scale, **shapes, ROWS=rows, BLOCK=BLOCK
  )
  _merge[(programs, groups)](parts, sums, out, **shapes)
  return out


def choose_splits(programs: int, slots: int) -> int:
  """Returns a power of 2 that gives two waves of programs, or fewer.

  Every split has a block to read.
  """
  wanted = max(1, 2 * CORES // programs)
  blocks = triton.cdiv(slots, BLOCK)
  return triton.next_power_of_2(min(wanted, blocks))


@triton.jit
def _split(
  q,
  k,
  v,
  parts,
  sums,
  slots,
  scale,
  GROUPS: constexpr,
  WIDTH: constexpr,
  SPLITS: constexpr,
  ROWS: constexpr,
  BLOCK: constexpr,
):
  head, split = tl.program_id(0), tl.program_id(1)
  rows, lanes = tl.arange(0, ROWS), tl.arange(0, WIDTH)
  tile = (head * GROUPS + rows[:, None]) * WIDTH + lanes[None, :]
  query = tl.load(q + tile, mask=rows[:, None] < GROUPS, other=0.0)
  each = tl.cdiv(tl.cdiv(slots, BLOCK), SPLITS) * BLOCK
  begin = split * each
  end = tl.minimum(begin + each, slots)
  first = head.to(tl.int64) * slots
  top = tl.full((ROWS,), float('-inf'), tl.float32)
  total = tl.zeros((ROWS,), tl.float32)
  out = tl.zeros((ROWS, WIDTH), tl.float32)
  for start in range(begin, end, BLOCK):
    slot = start + tl.arange(0, BLOCK)
    live = slot < end
    where = (first + slot)[:, None] * WIDTH + lanes[None, :]
    key = tl.load(k + where, mask=live[:, None], other=0.0)
    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(live[None, :], scores, float('-inf'))
    new = tl.maximum(top, tl.max(scores, 1))
    weights = tl.exp2(scores - new[:, None])
    keep = tl.exp2(top - new)
    value = tl.load(v + where, mask=live[:, None], other=0.0)
    out = out * keep[:, None] + tl.dot(weights.to(value.dtype), value)
    total = total * keep + tl.sum(weights, 1)
    top = new
  safe = tl.where(total == 0.0, 1.0, total)
  row = (head * SPLITS + split) * GROUPS + rows
  tl.store(sums + row, top + tl.log2(safe), mask=rows < GROUPS)
  tl.store(
    parts + row[:, None] * WIDTH + lanes[None, :],
    out / safe[:, None],
    mask=rows[:, None] < GROUPS,
  )


@triton.jit
def _merge(
  parts, sums, out, GROUPS: constexpr, WIDTH: constexpr, SPLITS: constexpr
):
  head, row = tl.program_id(0), tl.program_id(1)
  splits, lanes = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
  parts_of_row = (head * SPLITS + splits) * GROUPS + row
  sum_of_part = tl.load(sums + parts_of_row)
  weights = tl.exp2(sum_of_part - tl.max(sum_of_part, 0))
  part = tl.load(parts + parts_of_row[:, None] * WIDTH + lanes[None, :])
  merged = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
  place = out + (head * GROUPS + row) * WIDTH + lanes
  tl.store(place, merged.to(out.dtype.element_ty))
