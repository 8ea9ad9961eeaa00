"""Caches: where tokens go, and how what they leave behind is stored."""
