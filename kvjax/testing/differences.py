"""How far two sets of logits are apart, and where the distance is largest."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
  """The worst element of one scenario.

  Attributes:
    name: of the scenario.
    chunk: most tokens of its calls.
    index: of the worst element within the logits of its token.
    row: of the batch, in which the worst element is.
    position: of its token in that row.
    cached, uncached: the worst element.
    scale: the largest finite |uncached|.
    relative: |got - want| of the worst element over `scale`; inf where only one
      of the two is finite.
  """

  name: str
  chunk: int
  index: tuple[int, ...]
  row: int
  position: int
  cached: float
  uncached: float
  scale: float
  relative: float

  @property
  def short(self) -> str:
    place = f'row {self.row}, position {self.position}'
    return f'{self.name} ({place}, {self.relative:.1e})'

  def __str__(self) -> str:
    return (
      f'Cached and uncached differ most in scenario "{self.name}", calls of '
      f'up to {self.chunk} tokens, row {self.row}, position {self.position}, '
      f'element {self.index}: cached {self.cached:.9g}, uncached '
      f'{self.uncached:.9g}, {self.relative:.1e} of the largest '
      f'|uncached| {self.scale:.3g}.'
    )


def worst_difference(
  name: str,
  chunk: int,
  rows: Sequence[np.ndarray | None],
  reference: np.ndarray,
) -> Difference:
  """Returns where cached logits differ most from uncached ones.

  Args:
    name: of the scenario.
    chunk: most tokens of its calls.
    rows: cached logits `[tokens, ...]` of each row; None for a row without a
      token.
    reference: uncached logits `[B, T, ...]`.

  Raises:
    ValueError: the reference is NaN somewhere.
  """
  compared = [(row, x) for row, x in enumerate(rows) if x is not None]
  got = np.concatenate([x for _, x in compared])
  want = np.concatenate([reference[row, : len(x)] for row, x in compared])
  places = [(row, t) for row, x in compared for t in range(len(x))]
  if np.isnan(want).any():
    row, position = places[int(np.argwhere(np.isnan(want))[0][0])]
    raise ValueError(
      f'forward returns NaN in row {row}, position {position}: an uncached '
      'reference must be a number.'
    )
  finite = np.abs(want[np.isfinite(want)])
  scale = float(finite.max(initial=0.0)) or 1.0
  error = distance(got, want)
  worst = tuple(map(int, np.unravel_index(int(error.argmax()), error.shape)))
  row, position = places[worst[0]]
  return Difference(
    name=name,
    chunk=chunk,
    index=worst[1:],
    row=row,
    position=position,
    cached=float(got[worst]),
    uncached=float(want[worst]),
    scale=scale,
    relative=float(error.max()) / scale,
  )


def distance(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  """Returns |got - want|; 0 for equal infinities, inf where one is NaN."""
  # inf - inf is NaN and a warning; equal infinities are replaced by 0 anyway.
  with np.errstate(invalid='ignore'):
    error = np.where(got == want, 0.0, np.abs(got - want))
  return np.where(np.isnan(error), np.inf, error)
