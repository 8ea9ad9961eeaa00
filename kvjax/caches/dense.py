"""The dense cache: one slot a position, up to the capacity."""

import dataclasses

from kvjax.caches.kind import Kind


@dataclasses.dataclass(frozen=True)
class Dense(Kind):
  """Keeps every token. Overflow is refused, never clamped."""
