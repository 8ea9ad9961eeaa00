"""What to keep: minimum cuts over the nodes that the past leaves behind."""
