"""A prompt cache as one file."""
