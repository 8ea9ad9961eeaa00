"""What inference with a model occupies, and what fits."""
