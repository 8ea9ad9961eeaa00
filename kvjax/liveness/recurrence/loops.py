"""Loops that carry a sum or a maximum over the past in place of its summands.

  S[t] = r[t] S[t - 1] + w[t] c[t],          y[t] = q[t] S[t]
  m[t] = max(m[t - 1] + d[t], c[t] + b[t])

(linear attention, arXiv 2006.16236, section 3.4; RetNet, arXiv 2307.08621,
equations 5 and 6; with r[t] = exp(m[t - 1] - m[t]) the running softmax of
Milakov and Gimelshein, arXiv 1805.02867, algorithm 3). Every axis of an array
has a letter: t counts rows, s what is summed. At every step both are the same
position, so a loop runs over one of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray


class Factor(NamedTuple):
  """One array of a product over the past."""

  array: Any
  letters: str  # of its axes


class Peak(NamedTuple):
  """A running maximum m, and its factors in sums of exp(c - m)."""

  high: Factor  # m[t]
  ratio: Factor  # exp(m[t - 1] + d[t] - m[t])
  weight: Factor  # exp(c[t] + b[t] - m[t])


class Summands(NamedTuple):
  """The factors of a running sum S."""

  ratios: list[Factor]  # r: what S is multiplied by at every step
  columns: list[Factor]  # w and c: the product that is added to S
  rows: list[Factor]  # q: what S is multiplied by in the result


def run_maximum(
  column: Factor, difference: Factor | None, diagonal: Factor | None, axes: str
) -> Peak:
  """Runs m over positions.

  Args:
    column: c, with the letter s.
    difference: d, with the letter t; None: 0.
    diagonal: b, with the letter t; None: 0.
    axes: the letters t and s.
  """
  t, s = axes
  terms = [f for f in (column, difference, diagonal) if f is not None]
  rest = _letters(terms, axes)
  entry = with_axes(column, s + rest)
  if diagonal is not None:
    entry = entry + with_axes(diagonal, t + rest).astype(entry.dtype)
  steps = None
  if difference is not None:
    steps = with_axes(difference, t + rest).astype(entry.dtype)

  def step(high: Any, row: Any) -> tuple[Any, Any]:
    shift, entry = row
    before = high if shift is None else high + shift
    high = jnp.maximum(before, entry)
    # While everything is masked m is -inf, and -inf - -inf is NaN. Without the
    # subtraction the exponential is 0, as a sum of masked terms must be.
    safe = jnp.where(high == -jnp.inf, jnp.zeros_like(high), high)
    return high, (high, jnp.exp(before - safe), jnp.exp(entry - safe))

  shape = jnp.broadcast_shapes(
    entry.shape[1:], () if steps is None else steps.shape[1:]
  )
  start = jnp.full(shape, -jnp.inf, entry.dtype)
  _, (high, ratio, weight) = jax.lax.scan(step, start, (steps, entry))
  letters = t + rest
  return Peak(
    Factor(high, letters), Factor(ratio, letters), Factor(weight, letters)
  )


def above(high: Factor, row: Factor, t: str) -> Factor:
  """Returns exp(m - row): 1 where the row is the maximum itself."""
  rest = _letters([high, row], t)
  difference = with_axes(high, t + rest) - with_axes(row, t + rest)
  return Factor(jnp.exp(difference), t + rest)


def run_sum(summands: Summands, out: str, axes: str) -> Factor:
  """Runs S over positions; returns y.

  Args:
    summands: the factors of S.
    out: letters of the result. Those that no factor has are left out; t is
      first.
    axes: the letters t and s.
  """
  t, _ = axes
  ratios, columns, rows = summands
  state = ''.join(
    c
    for c in _letters([*ratios, *columns], axes)
    if c in out or any(c in f.letters for f in (*ratios, *rows))
  )
  row = ''.join(c for c in out if c in state or c in _letters(rows, axes))
  dtype = jnp.result_type(*(f.array for f in (*ratios, *columns, *rows)))
  dtype = jnp.promote_types(dtype, jnp.float32)
  cast = lambda fs: [
    _first(f._replace(array=jnp.asarray(f.array, dtype)), axes) for f in fs
  ]
  moving = [f for f in rows if t in f.letters]
  fixed = [f for f in rows if t not in f.letters]
  fixed_arrays = [jnp.asarray(f.array, dtype) for f in fixed]
  reading = [*(f.letters for f in fixed), *_names(moving, axes), state]

  def step(total: Any, new: Any) -> tuple[Any, Any]:
    ratio, column, moving_arrays = new
    total = _einsum([*_names(ratios, axes), state], state, [*ratio, total])
    total = total + _einsum(_names(columns, axes), state, column)
    return total, _einsum(reading, row, [*fixed_arrays, *moving_arrays, total])

  parts = cast(ratios), cast(columns), cast(moving)
  first = [c[0] for c in parts[1]]
  start = jax.eval_shape(
    lambda arrays: _einsum(_names(columns, axes), state, arrays), first
  )
  _, y = jax.lax.scan(step, jnp.zeros(start.shape, start.dtype), parts)
  return Factor(y, t + row)


def _einsum(letters: Sequence[str], out: str, arrays: Sequence[Any]) -> Any:
  if len(arrays) == 1 and letters[0] == out:
    return arrays[0]
  return jnp.einsum(f'{",".join(letters)}->{out}', *arrays)


def _letters(factors: Sequence[Factor], axes: str) -> str:
  """Returns the letters of all axes that are not positions, in order."""
  every = ''.join(f.letters for f in factors)
  return ''.join(c for c in dict.fromkeys(every) if c not in axes)


def _names(factors: Sequence[Factor], axes: str) -> list[str]:
  return [_letters([f], axes) for f in factors]


def _first(factor: Factor, axes: str) -> Any:
  """Returns the array with its positions in front."""
  (position,) = (c for c in factor.letters if c in axes)
  return jnp.moveaxis(factor.array, factor.letters.index(position), 0)


def with_axes(factor: Factor, axes: str) -> Any:
  """Returns the array with these axes, of size 1 where it lacks one."""
  order = [factor.letters.index(c) for c in axes if c in factor.letters]
  missing = [i for i, c in enumerate(axes) if c not in factor.letters]
  array = jnp.transpose(jnp.asarray(factor.array), order)
  return jnp.expand_dims(array, missing)


def row_ratios(table: Factor, axes: str) -> tuple[Factor, Factor] | None:
  """Returns the ratio of each row to the row before, and the diagonal.

  None where rows are no multiples, or where the table is not zero above its
  diagonal or zero somewhere on it.
  """
  plain = _condensed(table, axes)
  values = plain.array.astype(np.float64)
  diagonal = _diagonal(values)
  if not np.all(diagonal) or np.any(values[np.triu_indices(len(values), 1)]):
    return None
  ratio = np.ones_like(diagonal)
  product = np.zeros_like(values)
  product[0, 0] = diagonal[0]
  for i in range(1, len(values)):
    ratio[i] = values[i, i - 1] / diagonal[i - 1]
    product[i] = product[i - 1] * ratio[i]
    product[i, i] = diagonal[i]
  if not np.allclose(product, values, 1e-3, 1e-5):
    return None
  letters = axes[0] + plain.letters[2:]
  return (
    Factor(ratio.astype(np.float32), letters),
    Factor(diagonal.astype(np.float32), letters),
  )


def row_differences(
  table: Factor, axes: str
) -> tuple[Factor | None, Factor | None] | None:
  """Returns what each row adds to the row before, and the diagonal.

  This is `row_ratios` of logarithms: above the diagonal the table is -inf. A
  part that is 0 everywhere is None, and so is the result where rows differ by
  no constant.
  """
  plain = _condensed(table, axes)
  values = plain.array.astype(np.float64)
  past = np.tri(len(values), dtype=bool)
  finite = np.all(np.isfinite(values[past]))
  if not finite or not np.all(values[~past] == -np.inf):
    return None
  diagonal = _diagonal(values)
  step = np.zeros_like(diagonal)
  for i in range(1, len(values)):
    step[i] = values[i, i - 1] - diagonal[i - 1]
    if not np.allclose(values[i, :i] - values[i - 1, :i], step[i], 1e-3, 1e-4):
      return None
  letters = axes[0] + plain.letters[2:]
  difference = _factor_unless_zero(step, letters)
  return difference, _factor_unless_zero(diagonal, letters)


def _diagonal(values: Array) -> Array:
  """Returns [t, ...] of [t, s, ...] the entries at which t is s."""
  rows = np.arange(len(values))
  return values[rows, rows]


def _factor_unless_zero(array: Array, letters: str) -> Factor | None:
  if not np.any(array):
    return None
  return Factor(array.astype(np.float32), letters)


def _condensed(table: Factor, axes: str) -> Factor:
  """Returns [t, s, ...] without axes along which the table is the same."""
  letters = axes + ''.join(c for c in table.letters if c not in axes)
  array = table.array.transpose([table.letters.index(c) for c in letters])
  for c in letters[2:]:
    axis = letters.index(c)
    part = array.take([0], axis)
    if np.array_equal(np.broadcast_to(part, array.shape), array):
      array = part.squeeze(axis)
      letters = letters.replace(c, '')
  return Factor(array, letters)
