"""A decoder made from an uncached program and its analysis."""
