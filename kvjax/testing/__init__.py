"""Testing: the harness that the contract suite and users call alike."""

__all__ = ()
