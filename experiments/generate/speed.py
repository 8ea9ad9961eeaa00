"""Speed of a generation: time to first token, tokens/s, share of bandwidth."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def describe(speed: Mapping[str, Any]) -> str:
  """Returns the record of a speed as lines of text."""
  read = speed['bandwidth'] / 1e9
  lines = {
    'first token': '{first_seconds:.3f} s, of which compilation '
    '{first_compilation:.3f}',
    'decode': '{tokens_per_second:.1f} tokens/s, {rows} rows, '
    '{steps} steps in {seconds:.3f} s without compilation',
    'cache': '{cache_bytes:,} bytes',
    'bandwidth': '{rate:.2f} GB/s, {of_bandwidth:.2f} of the '
    '{read:.2f} that this machine reads',
  }
  figures = {**speed, 'read': read, 'rate': speed['of_bandwidth'] * read}
  return '\n'.join(
    f'{name:<13}{text.format_map(figures)}' for name, text in lines.items()
  )


class Stopwatch:
  """Notes when tokens come, and the seconds of compilation until then.

  JAX's events tell these seconds. They are counted while this context manager
  is open.
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

  def record(
    self, *, step_bytes: int, bandwidth: float, cache_bytes: int
  ) -> dict[str, Any]:
    """Returns the figures of the generation.

    `steps` are those that the device ran, `first_seconds` go from the prompts
    to the first token, and `seconds` from there to the last token, without
    compilation. Rates count all tokens but the first of each row, and are NaN
    without a step.

    Args:
      step_bytes: that a step must read.
      bandwidth: bytes a second that this machine reads.
      cache_bytes: of the whole cache, at the end.
    """
    first_seconds, first_compilation = self._first - self._begin
    seconds, compilation = self._last - self._first
    seconds -= compilation
    steps = self.columns - 1
    later_tokens = max(self.tokens - self.rows, 0)
    rate = 1 / seconds if steps else float('nan')
    return {
      'record': 'speed',
      'rows': self.rows,
      'tokens': self.tokens,
      'steps': steps,
      'first_seconds': first_seconds,
      'first_compilation': first_compilation,
      'seconds': seconds,
      'step_bytes': step_bytes,
      'bandwidth': bandwidth,
      'cache_bytes': cache_bytes,
      'tokens_per_second': later_tokens * rate,
      'of_bandwidth': step_bytes * steps * rate / bandwidth,
    }

  def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith('/jax/core/compile/'):
      now = time.perf_counter()
      start = now - duration_secs
      # An event comes at its end, after those nested in it: it replaces them.
      before = [times for times in self._compilations if times[0] < start]
      self._compilations = [*before, (start, now)]

  def _now(self) -> np.ndarray:
    """Returns the time and the seconds of compilation until then."""
    compilation = sum(stop - start for start, stop in self._compilations)
    return np.asarray([time.perf_counter(), compilation])
