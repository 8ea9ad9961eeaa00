"""Testing: the harness that the contract suite and users call."""

from kvjax.testing.empty_slots import poison
from kvjax.testing.harness import assert_cached_matches_uncached

__all__ = ('assert_cached_matches_uncached', 'poison')
