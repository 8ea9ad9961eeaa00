"""Clocks, races and what they measure: shared by several questions."""
