"""How a launch of `flash_decode` is cut into programs and blocks of slots."""

import dataclasses
from typing import Any

from kvjax.streams.visibility import Visibility

ROWS = 64  # of a tile of queries: what one warpgroup multiplies at once
LANES = 64  # elements of two bytes in a row of 128 swizzled bytes
BLOCK = 64  # slots that one iteration reads
STAGES = 4  # blocks in flight, at most
CORES = 132  # of an H100 SXM or H200: programs that run at a time
SHARED = 232_448 - 4_096  # bytes of a program, less barriers and scratch


@dataclasses.dataclass(frozen=True)
class Launch:
  """Static choices of one launch.

  Attributes:
    rule: which keys a query sees.
    scale: multiplies every product of query and key.
    softcap: scores become `softcap * tanh(score / softcap)`; None for none.
    splits: programs that share the slots of a row and kv head.
    block: slots that one iteration reads.
    stages: blocks in flight.
    interpret: of `plgpu.kernel`; None to compile.
    ordered: slot i holds position i.
  """

  rule: Visibility
  scale: float
  softcap: float | None
  splits: int
  block: int
  stages: int
  interpret: Any = None
  ordered: bool = False


def choose_stages(
  width: int, value_width: int, block: int = BLOCK, query_bytes: int = 2
) -> int:
  """Returns how many blocks fit in shared memory with query and output.

  Fewer than 2 cannot serve: one is read while the other is filled.

  Args:
    width: H.
    value_width: E.
    block: slots of a block.
    query_bytes: that one element of a query occupies.
  """
  fixed = ROWS * (query_bytes * width + 4 * value_width + 4)
  block_bytes = block * (2 * (width + value_width) + 4)
  return min(STAGES, (SHARED - fixed) // block_bytes)


def choose_splits(work: int, blocks: int, cores: int = CORES) -> int:
  """Returns by how many programs the slots of a row and head are shared.

  One wave of programs, if it leaves few cores idle; else the fewest whose last
  wave leaves hardly more idle than the best would: 0.85 of its share
  (FlashAttention-3, `hopper/heuristics.h`).

  Args:
    work: rows times kv heads.
    blocks: of slots.
    cores: programs that run at a time.
  """
  if not work or 5 * work >= 4 * cores:
    return 1
  counts = range(1, max(min(blocks, cores), 1) + 1)
  used = {n: work * n / (-(-work * n // cores) * cores) for n in counts}
  wave = min(cores // work, len(used))
  if used.get(wave, 0.0) >= 0.85:
    return wave
  best = max(used.values())
  return next(n for n in counts if used[n] >= 0.85 * best)
