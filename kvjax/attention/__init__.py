"""Attention: what a token asks, what it leaves behind, and the one core."""
