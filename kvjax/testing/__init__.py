"""Testing: the harness that the contract suite and users call alike."""

from kvjax.testing.harness import assert_cached_matches_uncached
from kvjax.testing.poison import poison

__all__ = ('assert_cached_matches_uncached', 'poison')
