"""Loops that hold a sum or a maximum over the past in place of its summands.

  S[t] = r[t] S[t - 1] + w[t] c[t],          y[t] = q[t] S[t]
  m[t] = max(m[t - 1] + d[t], c[t] + b[t])

(linear attention, arXiv 2006.16236, section 3.4; RetNet, arXiv 2307.08621,
equations 5 and 6; with r[t] = exp(m[t - 1] - m[t]) the running softmax of
Milakov and Gimelshein, arXiv 1805.02867, algorithm 3). Arrays have a letter an
axis: t counts rows, s what is summed, at every step the same position.
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
  """A running maximum m, and what it does to sums of exp(c - m)."""

  high: Factor  # m[t]
  ratio: Factor  # exp(m[t - 1] + d[t] - m[t])
  own: Factor  # exp(c[t] + b[t] - m[t])


def maximum(
  column: Factor, steps: Factor | None, own: Factor | None, axes: str
) -> Peak:
  """Runs m over positions; `axes` is t, s. No steps, no own: 0."""
  t, s = axes
  rest = _letters([f for f in (column, steps, own) if f is not None], axes)
  here = _rows(column, s, rest)
  if own is not None:
    here = here + _rows(own, t, rest).astype(here.dtype)
  less = None if steps is None else _rows(steps, t, rest).astype(here.dtype)

  def step(high: Any, new: Any) -> tuple[Any, Any]:
    less, here = new
    before = high if less is None else high + less
    high = jnp.maximum(before, here)
    # Where all is masked so far, exp(-inf - 0) is the 0 that is meant.
    safe = jnp.where(high == -jnp.inf, jnp.zeros_like(high), high)
    return high, (high, jnp.exp(before - safe), jnp.exp(here - safe))

  shape = jnp.broadcast_shapes(
    here.shape[1:], () if less is None else less.shape[1:]
  )
  start = jnp.full(shape, -jnp.inf, here.dtype)
  _, found = jax.lax.scan(step, start, (less, here))
  return Peak(*(Factor(a, t + rest) for a in found))


def above(high: Factor, row: Factor, t: str) -> Factor:
  """exp(m - row): 1 where the row is the very maximum."""
  rest = _letters([high, row], t)
  gap = _rows(high, t, rest) - _rows(row, t, rest)
  return Factor(jnp.exp(gap), t + rest)


def total(
  ratios: Sequence[Factor],
  columns: Sequence[Factor],
  rows: Sequence[Factor],
  out: str,
  axes: str,
) -> Factor:
  """Runs S over positions; `columns` have s or t, w among them.

  Returns y with the letters of `out` that some array has, t first.
  """
  t, s = axes
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
  still = [jnp.asarray(f.array, dtype) for f in rows if t not in f.letters]
  ask = [
    *(f.letters for f in rows if t not in f.letters),
    *_names(moving, axes),
  ]

  def step(held: Any, new: Any) -> tuple[Any, Any]:
    ratio, column, moving = new
    held = _einsum([*_names(ratios, axes), state], state, [*ratio, held])
    held = held + _einsum(_names(columns, axes), state, column)
    return held, _einsum([*ask, state], row, [*still, *moving, held])

  parts = cast(ratios), cast(columns), cast(moving)
  start = jax.eval_shape(
    lambda *a: _einsum(_names(columns, axes), state, a),
    *(c[0] for c in parts[1]),
  )
  _, y = jax.lax.scan(step, jnp.zeros(start.shape, start.dtype), parts)
  return Factor(y, t + row)


def _einsum(letters: Sequence[str], out: str, arrays: Sequence[Any]) -> Any:
  if len(arrays) == 1 and letters[0] == out:
    return arrays[0]
  return jnp.einsum(f'{",".join(letters)}->{out}', *arrays)


def _letters(factors: Sequence[Factor], axes: str) -> str:
  """Letters of all but positions, in order."""
  every = ''.join(f.letters for f in factors)
  return ''.join(c for c in dict.fromkeys(every) if c not in axes)


def _names(factors: Sequence[Factor], axes: str) -> list[str]:
  return [_letters([f], axes) for f in factors]


def _first(factor: Factor, axes: str) -> Any:
  """The array with its positions in front."""
  (position,) = (c for c in factor.letters if c in axes)
  return jnp.moveaxis(factor.array, factor.letters.index(position), 0)


def _rows(factor: Factor, position: str, rest: str) -> Any:
  """[T, *rest], of size 1 where the array has not the letter."""
  order = [c for c in (position, *rest) if c in factor.letters]
  array = jnp.transpose(
    jnp.asarray(factor.array), [factor.letters.index(c) for c in order]
  )
  axes = position + rest
  missing = [i for i, c in enumerate(axes) if c not in factor.letters]
  return jnp.expand_dims(array, missing)


def multiples(table: Factor, axes: str) -> tuple[Factor, Factor] | None:
  """How a row is a multiple of the row before, and the diagonal; or None.

  The table is zero above its diagonal and nowhere on it.
  """
  plain = _condensed(table, axes)
  values = plain.array.astype(np.float64)
  length = len(values)
  own = np.stack([values[i, i] for i in range(length)])
  if not np.all(own) or np.any(values[np.triu_indices(length, 1)]):
    return None
  ratio = np.ones_like(own)
  for i in range(1, length):
    ratio[i] = values[i, i - 1] / own[i - 1]
  made = np.zeros_like(values)
  for i in range(length):
    made[i] = made[i - 1] * ratio[i] if i else 0
    made[i, i] = own[i]
  if not np.allclose(made, values, 1e-3, 1e-5):
    return None
  letters = axes[0] + plain.letters[2:]
  plain_ratio, plain_own = (a.astype(np.float32) for a in (ratio, own))
  return Factor(plain_ratio, letters), Factor(plain_own, letters)


def differences(
  table: Factor, axes: str
) -> tuple[Factor | None, Factor | None] | None:
  """The same of logarithms: what a row adds to the row before; -inf above."""
  plain = _condensed(table, axes)
  values = plain.array.astype(np.float64)
  length = len(values)
  seen = np.tri(length, dtype=bool)
  finite = np.all(np.isfinite(values[seen]))
  if not finite or not np.all(values[~seen] == -np.inf):
    return None
  own = np.stack([values[i, i] for i in range(length)])
  step = np.zeros_like(own)
  for i in range(1, length):
    step[i] = values[i, i - 1] - own[i - 1]
    if not np.allclose(values[i, :i] - values[i - 1, :i], step[i], 1e-3, 1e-4):
      return None
  letters = axes[0] + plain.letters[2:]
  found = (Factor(a.astype(np.float32), letters) for a in (step, own))
  first, second = (f if np.any(f.array) else None for f in found)
  return first, second


def _condensed(table: Factor, axes: str) -> Factor:
  """[t, s, ...], without the axes along which the table is the same."""
  letters = axes + ''.join(c for c in table.letters if c not in axes)
  array = table.array.transpose([table.letters.index(c) for c in letters])
  for c in letters[2:]:
    axis = letters.index(c)
    part = array.take([0], axis)
    if np.array_equal(np.broadcast_to(part, array.shape), array):
      array, letters = part.squeeze(axis), letters.replace(c, '')
  return Factor(array, letters)
