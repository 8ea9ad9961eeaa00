"""How far two sets of logits are apart, and where most."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The worst element of one scenario.

  Attributes:
    name: of the scenario.
    chunk: most tokens of its calls.
    got, want: all compared logits `[tokens, ...]`, cached and uncached.
    row, position: of the worst element.
    index: of it, within the logits of its token.
    scale: the largest finite |uncached|.
    relative: its difference over `scale`; inf where only one is finite.
  """

  name: str
  chunk: int
  got: np.ndarray
  want: np.ndarray
  row: int
  position: int
  index: tuple[int, ...]
  scale: float
  relative: float

  @property
  def short(self) -> str:
    place = f'row {self.row}, position {self.position}'
    return f'{self.name} ({place}, {self.relative:.1e})'

  def __str__(self) -> str:
    at = (self._flat,) + self.index
    return (
      f'Cached and uncached differ most in scenario "{self.name}", calls of '
      f'up to {self.chunk} tokens, row {self.row}, position {self.position}, '
      f'element {self.index}: cached {self.got[at]:.9g}, uncached '
      f'{self.want[at]:.9g}, {self.relative:.1e} of the largest |uncached| '
      f'{self.scale:.3g}.'
    )

  @property
  def _flat(self) -> int:
    tokens = len(self.got)
    error = distance(self.got, self.want).reshape(tokens, -1)
    return int(error.max(axis=1).argmax())


def judge(
  name: str,
  chunk: int,
  rows: Sequence[np.ndarray | None],
  reference: np.ndarray,
) -> Verdict:
  """Returns the verdict on logits of rows against `reference [B, T, ...]`."""
  found = [(row, x) for row, x in enumerate(rows) if x is not None]
  got = np.concatenate([x for _, x in found])
  want = np.concatenate([reference[row, : len(x)] for row, x in found])
  places = [(row, t) for row, x in found for t in range(len(x))]
  if np.isnan(want).any():
    row, position = places[int(np.argwhere(np.isnan(want))[0][0])]
    raise ValueError(
      f'forward returns NaN in row {row}, position {position}: an uncached '
      'reference must be a number.'
    )
  finite = np.abs(want[np.isfinite(want)])
  scale = float(finite.max(initial=0.0)) or 1.0
  error = distance(got, want)
  worst = np.unravel_index(int(error.argmax()), error.shape)
  row, position = places[worst[0]]
  index = tuple(int(i) for i in worst[1:])
  relative = float(error[worst]) / scale
  return Verdict(name, chunk, got, want, row, position, index, scale, relative)


def distance(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  """Returns |got - want|; 0 for equal infinities, inf where one is NaN."""
  with np.errstate(invalid='ignore'):
    error = np.where(got == want, 0.0, np.abs(got - want))
  return np.where(np.isnan(error), np.inf, error)
