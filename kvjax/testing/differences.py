"""How far two sets of logits are apart, and where they differ first."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
  """What differs in one scenario.

  Attributes:
    name: of the scenario.
    chunk: most tokens of its calls.
    row: of the batch, in which the first wrong token is.
    position: of the first wrong token in its row; where nothing is wrong, of
      the token that differs most.
    index: of that token's worst element within its logits.
    cached, uncached: that element.
    scale: the largest finite |uncached| of the scenario.
    relative: the largest |cached - uncached| of the scenario over `scale`; inf
      where only one of the two is finite.
    looks_like: what the logits of that token are instead, '' for unknown.
  """

  name: str
  chunk: int
  row: int
  position: int
  index: tuple[int, ...]
  cached: float
  uncached: float
  scale: float
  relative: float
  looks_like: str

  @property
  def short(self) -> str:
    place = f'row {self.row}, position {self.position}'
    return f'{self.name} ({place}, {self.relative:.1e})'

  def __str__(self) -> str:
    return (
      f'Cached and uncached differ in scenario "{self.name}", calls of up to '
      f'{self.chunk} tokens, first in row {self.row}, position '
      f'{self.position}, element {self.index}: cached {self.cached:.9g}, '
      f'uncached {self.uncached:.9g}. {self.looks_like}The worst element of '
      f'the scenario differs by {self.relative:.1e} of the largest '
      f'|uncached| {self.scale:.3g}.'
    )


def find_difference(
  name: str,
  chunk: int,
  rows: Sequence[np.ndarray | None],
  reference: np.ndarray,
  rtol: float,
) -> Difference:
  """Returns where cached logits differ from uncached ones.

  Args:
    name: of the scenario.
    chunk: most tokens of its calls.
    rows: cached logits `[tokens, ...]` of each row; None for a row without a
      token.
    reference: uncached logits `[B, T, ...]`.
    rtol: a token is wrong if it differs by more than this, relative to the
      largest uncached logit.

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
  of_token = error.reshape(len(error), -1).max(axis=1)
  wrong = [i for i, x in enumerate(of_token) if x > rtol * scale]
  # Of several rows the one that is wrong at the earliest position.
  token = min(
    wrong, key=lambda i: places[i][::-1], default=int(of_token.argmax())
  )
  index = np.unravel_index(int(error[token].argmax()), error[token].shape)
  row, position = places[token]
  seen = reference[:, : position + 2]
  return Difference(
    name=name,
    chunk=chunk,
    row=row,
    position=position,
    index=tuple(map(int, index)),
    cached=float(got[token][index]),
    uncached=float(want[token][index]),
    scale=scale,
    relative=float(error.max()) / scale,
    looks_like=_describe(got[token], seen, row, position, rtol * scale),
  )


def _describe(
  logits: np.ndarray,
  reference: np.ndarray,
  row: int,
  position: int,
  tolerance: float,
) -> str:
  """Returns what wrong logits of a token look like, as a sentence.

  Args:
    logits: of the token, from the cache.
    reference: uncached logits `[B, T, ...]`.
    row, position: of the token.
    tolerance: up to which two numbers are equal.
  """
  # A model may exclude tokens by logits of -inf.
  expected = np.isfinite(reference[row, position])
  if (~np.isfinite(logits) & expected).any():
    return (
      'It is no finite number: the cache was full, or a slot that holds no '
      'token was read. '
    )

  def equals(other: np.ndarray) -> bool:
    return bool((distance(logits, other) <= tolerance).all())

  for near in (position - 1, position + 1):
    if 0 <= near < reference.shape[1] and equals(reference[row, near]):
      return (
        f'These are the uncached logits of position {near} in this row: '
        'positions are off by one. '
      )
  for other in range(len(reference)):
    if other != row and equals(reference[other, position]):
      return (
        f'These are the uncached logits of row {other} at this position: the '
        'wrong row was read. '
      )
  return ''


def distance(got: np.ndarray, want: np.ndarray) -> np.ndarray:
  """Returns |got - want|; 0 for equal infinities, inf where one is NaN."""
  # inf - inf is NaN and a warning; equal infinities are replaced by 0 anyway.
  with np.errstate(invalid='ignore'):
    error = np.where(got == want, 0.0, np.abs(got - want))
  return np.where(np.isnan(error), np.inf, error)
