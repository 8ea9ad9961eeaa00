"""Seconds that JAX spent on tracing and compiling, as its own events say."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_PREFIX = '/jax/core/compile/'


class Compilation:
  """Adds up intervals of compilation; what nests is counted once."""

  def __init__(self):
    self.spans: list[tuple[float, float]] = []

  @property
  def seconds(self) -> float:
    """Seconds so far."""
    total, end = 0.0, -float('inf')
    for start, stop in sorted(self.spans):
      total += max(stop - max(start, end), 0.0)
      end = max(end, stop)
    return total


@contextmanager
def compilation() -> Iterator[Compilation]:
  """Yields what counts the compilations of this process from here on."""
  found = Compilation()

  def listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith(_PREFIX):
      now = time.perf_counter()
      found.spans.append((now - duration_secs, now))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
