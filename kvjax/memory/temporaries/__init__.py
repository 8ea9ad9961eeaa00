"""Bytes that one call needs for intermediate results."""
