"""Speed of a generation: time to first token, tokens/s, share of bandwidth."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Speed:
  """What a generation took; JAX's events tell the seconds of compilation.

  Attributes:
    rows: B.
    tokens: returned, of all rows.
    steps: decode steps that the device ran.
    first_seconds: from the prompts to the first token, compilation included.
    first_compilation: seconds of compilation among these.
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
  """Notes when tokens come, and the seconds of compilation until then.

  Compilation is counted while this context manager is open.
  """

  def __init__(self):
    self.rows = self.tokens = self.columns = 0
    self._compilations: list[tuple[float, float]] = []
    self._begin = self._first = self._last = self._now()

  def __enter__(self) -> 'Stopwatch':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *error: object) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)

  def feed(self, new: np.ndarray) -> None:
    """Takes int32 `[B, n]` when they come; -1 is no token."""
    self._last = self._now()
    if not self.columns:
      self._first = self._last
    self.rows = len(new)
    self.tokens += int((new >= 0).sum())
    self.columns += new.shape[1]

  def speed(self, **sizes: Any) -> Speed:
    """Returns the figures; `sizes` are the fields that no clock measures."""
    first, first_compilation = self._first - self._begin
    seconds, compilation = self._last - self._first
    return Speed(
      rows=self.rows,
      tokens=self.tokens,
      steps=self.columns - 1,
      first_seconds=float(first),
      first_compilation=float(first_compilation),
      seconds=float(seconds - compilation),
      **sizes,
    )

  def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith('/jax/core/compile/'):
      now = time.perf_counter()
      self._compilations.append((now - duration_secs, now))

  def _now(self) -> np.ndarray:
    """Returns the time and the seconds of compilation until then."""
    compilation = 0.0
    end = -float('inf')
    for start, stop in sorted(self._compilations):
      # Nested intervals are counted once.
      compilation += max(stop - max(start, end), 0.0)
      end = max(end, stop)
    return np.asarray([time.perf_counter(), compilation])
