"""Decoding: pure functions over an immutable cache."""
