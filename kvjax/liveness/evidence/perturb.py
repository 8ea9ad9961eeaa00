"""Evidence that does not trust the relations: noise, and who notices it.

Reach is perturbation of one input position; separation is poison: everything
of the past outside the cut replaced by noise, and the future bit-identical.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes, min_cut
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import record, replay, rules, scalars

Array = np.ndarray


def noise(seed: int, value: Any) -> Array:
  """Another value of the same kind, never equal to the one given."""
  value = np.asarray(value)
  draw = np.random.default_rng(seed)
  if value.dtype == bool:
    return ~value
  if np.issubdtype(value.dtype, np.integer):
    # Another row's number is a number the program accepts.
    low, high = int(value.min(initial=0)), int(value.max(initial=1))
    step = draw.integers(1, max(high - low, 1) + 1, value.shape)
    return (low + (value - low + step) % (high - low + 1)).astype(value.dtype)
  return (value + draw.normal(size=value.shape)).astype(value.dtype)


def seen(trace: record.Trace, x: Any, draws: int = 1) -> Array:
  """[scalars] the last input position whose perturbation moves each one."""
  out = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  x = np.asarray(x)
  for seed in range(draws):
    base = replay.replay(trace, x)
    other = noise(seed, x)
    for position in range(trace.length):
      moved = np.array(x)
      here = (slice(None),) * trace.axis + (position,)
      moved[here] = other[here]
      values = replay.replay(trace, moved)
      out[~_same(base, values)] = position
    x = other
  return out


def _same(a: Array, b: Array) -> Array:
  return (a == b) | (np.isnan(a) & np.isnan(b))


def check(trace: record.Trace, x: Any) -> None:
  """Raises where perturbation and the relations part.

  A dependence that only perturbation sees is a mistake. Old rows that only
  the relations move are refused: they are wider than the truth where an index
  depends on data, and only values know whether it keeps to the past.
  """
  moved = seen(trace, x)
  wrong = moved > trace.table.available
  if np.any(wrong):
    maker = int(trace.table.maker[np.flatnonzero(wrong)[0]])
    origin = trace.ops[maker].origin
    raise AnalysisError(
      f'the positions read by {origin.text} at {origin.source} are more than '
      f'its rule says; please report it.'
    )
  if lag(trace)[0] and not lag(trace, moved)[0]:
    moved = np.maximum(moved, seen(trace, noise(1, x), draws=3))
    if not lag(trace, moved)[0]:
      origin = _widest(trace, moved).origin
      raise AnalysisError(
        'no perturbation moves an old row, yet nothing but values keeps '
        f'{origin.text} at {origin.source} from the future. Mask by position '
        'instead of indexing by data.'
      )


def _widest(trace: record.Trace, moved: Array) -> record.Op:
  """The first operation whose rule is wider than what was seen."""
  for loose in (True, False):
    for op in trace.ops:
      outs = np.concatenate([o[o >= 0] for o in op.outs])
      wide = np.any(trace.table.available[outs] > moved[outs])
      if wide and (op.name in rules.LOOSE or not loose):
        return op
  return trace.ops[0]


def stable(short: record.Trace, long: record.Trace, x: Any) -> bool:
  """Whether rows of the output stay when the sequence is longer.

  A table that depends on the length (dynamic NTK) moves them though no mask
  lets a later token be seen.
  """
  few = replay.replay(short, np.take(x, range(short.length), short.axis))
  many = replay.replay(long, x)
  for a, b in zip(short.outputs, long.outputs, strict=True):
    rows = row_axis(short, a, long, b)
    if rows is None:
      continue
    ready = _ready(short, a, rows)
    left = np.moveaxis(replay.read(few, a), rows, 0)
    right = np.moveaxis(replay.read(many, b), rows, 0)[: short.length]
    done = ready < short.length - _waits(short, a, rows).max(initial=0)
    right = right[tuple(slice(n) for n in left.shape)]
    if not _close(left[done], right[done]):
      return False
  return True


def row_axis(
  short: record.Trace,
  a: Any,
  long: record.Trace | None = None,
  b: Any = None,
) -> int | None:
  """The axis of an output that counts positions, if it has one."""
  axes = [i for i, n in enumerate(a.shape) if n == short.length]
  if long is not None:
    axes = [i for i in axes if b.shape[i] == long.length]
  if short.axis in axes:
    return short.axis
  return axes[0] if axes else None


def _ready(
  trace: record.Trace, tensor: Any, axis: int, known: Array | None = None
) -> Array:
  known = trace.table.available if known is None else known
  ready = scalars.lookup(known, tensor.ids)
  return np.moveaxis(ready, axis, 0).reshape(tensor.shape[axis], -1).max(1)


def lag(trace: record.Trace, known: Array | None = None) -> tuple[int, int]:
  """Positions an output row waits for after its own: the most, and usually.

  `known` takes the place of when every scalar is available. Rows of a prefix
  that all see each other wait, those after it do not.
  """
  most = usual = 0
  for tensor in trace.outputs:
    axis = row_axis(trace, tensor)
    if axis is not None:
      waits = _waits(trace, tensor, axis, known)
      most = max(most, int(waits.max(initial=0)))
      usual = max(usual, int(waits[len(waits) // 2]))
  return most, usual


def _waits(
  trace: record.Trace, tensor: Any, axis: int, known: Array | None = None
) -> Array:
  ready = _ready(trace, tensor, axis, known)
  return np.maximum(ready - np.arange(len(ready)), 0)


def _close(a: Array, b: Array) -> bool:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if not a.size:
    return True
  both = np.isnan(a) & np.isnan(b)
  scale = np.abs(np.nan_to_num(a, posinf=0, neginf=0)).max() + 1e-30
  gap = np.where(both | (a == b), 0, np.abs(a - b))
  return bool(np.max(gap) <= 1e-3 * scale)


def _as(values: Array, like: Array) -> Array:
  if np.iscomplexobj(values) and not np.iscomplexobj(like):
    values = np.real(values)
  return values.astype(like.dtype)


def poisoned(
  trace: record.Trace,
  x: Any,
  position: int,
  graph: min_cut.Graph,
  cut: min_cut.Cut,
  without: Collection[int] = (),
) -> float:
  """How far the future moves when the past outside the cut is noise.

  Args:
    trace: the program.
    x: its input.
    position: the boundary.
    graph: tensors of the past there.
    cut: what is kept, and what is redone from it.
    without: kept tensors to lose as well.

  Returns:
    The greatest change of an output from the boundary on; 0.0 when the cut
    separates, and greater, or NaN, when a tensor that matters is lost.
  """
  base = replay.replay(trace, x)
  past = trace.table.available < position
  kept = np.zeros_like(past)
  free = np.zeros_like(past)
  for i in cut.kept:
    kept[graph.nodes[i].ids] = i not in without
  for i in cut.redone:
    free[graph.nodes[i].ids] = True

  def change(ids: Array, made: Array) -> Array:
    ruined = past[ids] & ~free[ids]
    # Around the true value, for 0 * inf would notice what nobody reads.
    true = _as(np.nan_to_num(base[ids], posinf=1.0, neginf=-1.0), made)
    out = np.where(ruined, noise(len(ids), true), made)
    return np.where(kept[ids], _as(base[ids], made), out)

  values = replay.replay(trace, x, change)
  future = lifetimes.outputs_from(trace, position) >= 0
  gap = np.abs(values[future] - base[future])
  same = _same(values[future], base[future])
  return float(np.max(np.where(same, 0.0, gap), initial=0.0))
