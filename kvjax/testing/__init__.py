"""Testing: the harness that the contract suite and users call."""

from kvjax.testing.empty_slots import poison
from kvjax.testing.harness import (
  NotPoisonedWarning,
  assert_cached_matches_uncached,
)

__all__ = ('NotPoisonedWarning', 'assert_cached_matches_uncached', 'poison')
