"""Speed of a generation: time to first token, tokens/s, share of bandwidth."""

import dataclasses
import time
from typing import Any

import numpy as np

from experiments.generate.compilation import Compilation


@dataclasses.dataclass(frozen=True)
class Speed:
  """What a generation took. Seconds of compilation are apart, by JAX's events.

  Attributes:
    rows: B.
    tokens: returned, of all rows.
    steps: decode steps that the device made.
    first_seconds: from the prompts to the first token, compilation included.
    first_compilation: seconds of that which were compilation.
    seconds: from the first token to the last, without compilation.
    step_bytes: that a step must read.
    bandwidth: bytes a second that this machine reads.
    cache_bytes: of the whole cache, at the end.
  """

  rows: int
  tokens: int
  steps: int
  first_seconds: float
  first_compilation: float
  seconds: float
  step_bytes: int
  bandwidth: float
  cache_bytes: int

  @property
  def tokens_per_second(self) -> float:
    """Tokens of all rows but the first of each; NaN without any."""
    after = max(self.tokens - self.rows, 0)
    return after / self.seconds if after else float('nan')

  @property
  def of_bandwidth(self) -> float:
    """Share of the read bandwidth that the steps used; NaN without any."""
    if not self.steps:
      return float('nan')
    return self.step_bytes * self.steps / self.seconds / self.bandwidth

  def __str__(self) -> str:
    rate = self.of_bandwidth * self.bandwidth / 1e9
    lines = {
      'first token': f'{self.first_seconds:.3f} s, of which compilation '
      f'{self.first_compilation:.3f}',
      'decode': f'{self.tokens_per_second:.1f} tokens/s, {self.rows} rows, '
      f'{self.steps} steps in {self.seconds:.3f} s without compilation',
      'cache': f'{self.cache_bytes:,} bytes',
      'bandwidth': f'{rate:.2f} GB/s, {self.of_bandwidth:.2f} of the '
      f'{self.bandwidth / 1e9:.2f} that this machine reads',
    }
    return '\n'.join(f'{name:<13}{text}' for name, text in lines.items())

  def record(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {
      'record': 'speed',
      'tokens_per_second': self.tokens_per_second,
      'of_bandwidth': self.of_bandwidth,
    }


class Stopwatch:
  """Notes when tokens came, and how long was compiled until then."""

  def __init__(self, compiled: Compilation):
    self._compiled = compiled
    self._begin = time.perf_counter(), compiled.seconds
    self._first = self._last = self._begin
    self.tokens, self.columns = 0, 0

  def feed(self, new: np.ndarray) -> None:
    """Takes int32 `[B, n]` as it comes; -1 is no token."""
    self._last = time.perf_counter(), self._compiled.seconds
    if not self.columns:
      self._first = self._last
    self.tokens += int((new >= 0).sum())
    self.columns += new.shape[1]

  def speed(self, **more: Any) -> Speed:
    """Returns the figures; `more` are the fields that no clock tells."""
    (begin, before), first, last = self._begin, self._first, self._last
    return Speed(
      tokens=self.tokens,
      steps=self.columns - 1,
      first_seconds=first[0] - begin,
      first_compilation=first[1] - before,
      seconds=(last[0] - first[0]) - (last[1] - first[1]),
      **more,
    )
