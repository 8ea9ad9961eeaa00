"""Experiments: absl mains, each asking one question."""
