"""Evidence that does not trust the relations: noise, and what it moves.

Reach is the perturbation of one input position. Separation replaces everything
of the past outside the cut by noise; the future must stay bit-identical.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from kvjax.liveness.cut import lifetimes
from kvjax.liveness.errors import AnalysisError
from kvjax.liveness.program import replay, rules, scalars
from kvjax.liveness.program.scalars import Tensor
from kvjax.liveness.program.trace import Op, Trace
from kvjax.liveness.verdict import Analysis

Array = np.ndarray


def make_noise(seed: int, value: Any) -> Array:
  """Returns another value of the same kind, different in every entry."""
  value = np.asarray(value)
  draw = np.random.default_rng(seed)
  if value.dtype == bool:
    return ~value
  if np.issubdtype(value.dtype, np.integer):
    # Ids must stay in the range that the program accepts.
    low = int(value.min(initial=0))
    high = int(value.max(initial=1))
    step = draw.integers(1, max(high - low, 1) + 1, value.shape)
    return (low + (value - low + step) % (high - low + 1)).astype(value.dtype)
  return (value + draw.normal(size=value.shape)).astype(value.dtype)


def last_moved(trace: Trace, x: Any, draws: int = 1) -> Array:
  """Returns [scalars] the last input position whose noise moves each scalar.

  Args:
    trace: the program.
    x: its input.
    draws: how often to repeat this from another input.
  """
  out = np.full(trace.table.size, lifetimes.NEVER, np.int32)
  x = np.asarray(x)
  for seed in range(draws):
    base = replay.compute_values(trace, x)
    noise = make_noise(seed, x)
    for position in range(trace.length):
      moved = np.array(x)
      row = (slice(None),) * trace.axis + (position,)
      moved[row] = noise[row]
      values = replay.compute_values(trace, moved)
      out[~_same(base, values)] = position
    x = noise
  return out


def _same(a: Array, b: Array) -> Array:
  return (a == b) | (np.isnan(a) & np.isnan(b))


def check(trace: Trace, x: Any) -> None:
  """Raises where perturbation contradicts the relations.

  A dependence that only perturbation sees is a mistake of a rule. Old rows
  that only the relations move are refused: the relations are wider than the
  truth where data choose an index, and only values keep it to the past.
  """
  moved = last_moved(trace, x)
  wrong = moved > trace.table.available
  if np.any(wrong):
    maker = int(trace.table.maker[np.flatnonzero(wrong)[0]])
    origin = trace.ops[maker].origin
    raise AnalysisError(
      f'the positions read by {origin.text} at {origin.source} are more than '
      f'its rule says; please report it.'
    )
  if find_delay(trace)[0] and not find_delay(trace, moved)[0]:
    # One draw may miss a dependence; three more from another input decide.
    draws = last_moved(trace, make_noise(1, x), draws=3)
    moved = np.maximum(moved, draws)
    if not find_delay(trace, moved)[0]:
      origin = _widest(trace, moved).origin
      raise AnalysisError(
        'no perturbation moves an old row, yet nothing but values keeps '
        f'{origin.text} at {origin.source} from the future. Mask by position '
        'instead of indexing by data.'
      )


def _widest(trace: Trace, moved: Array) -> Op:
  """Returns the first operation whose rule is wider than what was seen."""
  wide = [
    op
    for op in trace.ops
    if np.any(trace.table.available[op.new_ids] > moved[op.new_ids])
  ]
  loose = [op for op in wide if op.name in rules.LOOSE]
  return (loose or wide or trace.ops)[0]


def rows_stay(short: Trace, long: Trace, x: Any) -> bool:
  """Returns whether rows of the output stay when the sequence is longer.

  A table that depends on the length (dynamic NTK) moves rows, though a mask
  hides all later tokens.
  """
  start = np.take(x, range(short.length), short.axis)
  short_values = replay.compute_values(short, start)
  long_values = replay.compute_values(long, x)
  for a, b in zip(short.outputs, long.outputs, strict=True):
    axis = row_axis(short, a, b)
    if axis is None:
      continue
    ready = _row_times(short.table.available, a, axis)
    left = np.moveaxis(replay.read_tensor(short_values, a), axis, 0)
    right = np.moveaxis(replay.read_tensor(long_values, b), axis, 0)
    # Rows near the end still wait for tokens that the short input lacks.
    final = ready < short.length - _waits(ready).max(initial=0)
    right = right[: short.length][tuple(slice(n) for n in left.shape)]
    if not _close(left[final], right[final]):
      return False
  return True


def row_axis(
  trace: Trace, tensor: Tensor, longer: Tensor | None = None
) -> int | None:
  """Returns the axis of a tensor that counts positions, if it has one.

  That is the input's axis of positions if possible, else the first.

  Args:
    trace: the program.
    tensor: one of its tensors.
    longer: the tensor in a longer sequence, where such an axis is longer.
  """
  other = tensor.shape if longer is None else longer.shape
  axes = [
    axis
    for axis, (size, after) in enumerate(zip(tensor.shape, other, strict=True))
    if size == trace.length and (longer is None or after > size)
  ]
  if trace.axis in axes:
    return trace.axis
  return axes[0] if axes else None


def _row_times(known: Array, tensor: Tensor, axis: int) -> Array:
  """Returns for every row the last position that it depends on."""
  ready = scalars.lookup(known, tensor.ids)
  return np.moveaxis(ready, axis, 0).reshape(tensor.shape[axis], -1).max(1)


def _waits(times: Array) -> Array:
  """Returns how many positions after its own every row waits for."""
  return np.maximum(times - np.arange(len(times)), 0)


def find_delay(trace: Trace, known: Array | None = None) -> tuple[int, int]:
  """Returns the positions that an output row waits for after its own position.

  Rows of a prefix that all see each other wait, rows after it do not.

  Args:
    trace: the program.
    known: [scalars] when each is available; None: by the relations.

  Returns:
    The most positions, and those of the middle row.
  """
  known = trace.table.available if known is None else known
  longest = 0
  usual = 0
  for tensor in trace.outputs:
    axis = row_axis(trace, tensor)
    if axis is not None:
      waits = _waits(_row_times(known, tensor, axis))
      longest = max(longest, int(waits.max(initial=0)))
      usual = max(usual, int(waits[len(waits) // 2]))
  return longest, usual


def _close(a: Array, b: Array) -> bool:
  a = np.asarray(a, np.float64)
  b = np.asarray(b, np.float64)
  if not a.size:
    return True
  scale = np.abs(np.nan_to_num(a, posinf=0, neginf=0)).max() + 1e-30
  difference = np.where(_same(a, b), 0, np.abs(a - b))
  return bool(np.max(difference) <= 1e-3 * scale)


def poison(analysis: Analysis, x: Any, without: Collection[int] = ()) -> float:
  """Returns how far the future moves when the past outside the cut is noise.

  Args:
    analysis: the program, and what the cut keeps and redoes.
    x: its input.
    without: kept nodes to lose as well.

  Returns:
    The greatest change of an output from the boundary on; 0.0 when the cut
    separates, and greater, or NaN, when a tensor that matters is lost.
  """
  trace = analysis.trace
  cut = analysis.cut
  nodes = analysis.graph.nodes
  position = analysis.boundary.position
  base = replay.compute_values(trace, x)
  past = trace.table.available < position
  kept = np.zeros_like(past)
  redone = np.zeros_like(past)
  for i in cut.kept:
    kept[nodes[i].ids] = i not in without
  for i in cut.redone:
    redone[nodes[i].ids] = True

  def change(ids: Array, values: Array) -> Array:
    ruined = past[ids] & ~redone[ids]
    # Noise is drawn around the true value, and finite: 0 times infinity is NaN
    # and would show a scalar that is read by nothing that counts.
    true = np.nan_to_num(base[ids], posinf=1.0, neginf=-1.0)
    true = replay.cast(true, values.dtype)
    out = np.where(ruined, make_noise(len(ids), true), values)
    return np.where(kept[ids], replay.cast(base[ids], values.dtype), out)

  values = replay.compute_values(trace, x, change)
  future = lifetimes.outputs_from(trace, position) >= 0
  difference = np.abs(values[future] - base[future])
  same = _same(values[future], base[future])
  # NaN in both runs is no change, and NaN - NaN would count as one.
  return float(np.max(np.where(same, 0.0, difference), initial=0.0))
