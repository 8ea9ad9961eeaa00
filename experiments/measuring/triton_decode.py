"""A split-KV flash-decode in Triton, to be raced against. Needs torch, triton.

What a user of torch would write (Flash-Decoding, Dao et al. 2023): one program
a split and kv head, its query heads as the rows of one tile, partial results
merged by log-sum-exp in a second kernel. It is interpreted on a CPU with
TRITON_INTERPRET=1.
"""

import importlib
from typing import TYPE_CHECKING, Any

torch: Any = importlib.import_module('torch')
triton: Any = importlib.import_module('triton')
tl: Any = importlib.import_module('triton.language')

# By its own name: an interpreter of Triton reads annotations as text.
if TYPE_CHECKING:
  constexpr = Any
else:
  constexpr = tl.constexpr

BLOCK = 64  # slots a turn reads
ROWS = 16  # least rows of a product of tensor cores
LOG2E = 1.4426950408889634
CORES = 132  # of an H100 SXM or H200


def attend(q: Any, k: Any, v: Any) -> Any:
  """Returns attention of `[B, K, G, H]` to `[B, K, S, H]`, in q's dtype."""
  batch, heads, groups, width = q.shape
  programs, slots = batch * heads, k.shape[2]
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
  """Returns a power of 2: two waves of programs, a block for each at least."""
  wanted = max(1, 2 * CORES // programs)
  blocks = triton.cdiv(slots, BLOCK)
  return triton.next_power_of_2(min(wanted, blocks))


@triton.jit
def _split(
    q, k, v, parts, sums, slots, scale,
    GROUPS: constexpr, WIDTH: constexpr, SPLITS: constexpr,
    ROWS: constexpr, BLOCK: constexpr,
):  # fmt: skip
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
    at = start + tl.arange(0, BLOCK)
    live = at < end
    where = (first + at)[:, None] * WIDTH + lanes[None, :]
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
    parts, sums, out,
    GROUPS: constexpr, WIDTH: constexpr, SPLITS: constexpr,
):  # fmt: skip
  head, row = tl.program_id(0), tl.program_id(1)
  splits, lanes = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
  at = (head * SPLITS + splits) * GROUPS + row
  found = tl.load(sums + at)
  weights = tl.exp2(found - tl.max(found, 0))
  part = tl.load(parts + at[:, None] * WIDTH + lanes[None, :])
  merged = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
  place = out + (head * GROUPS + row) * WIDTH + lanes
  tl.store(place, merged.to(out.dtype.element_ty))
