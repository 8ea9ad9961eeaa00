"""Checkpoints written: kvjax's own layout, or that of a published family."""
