"""A prompt cache as one file, or as one file for each process."""
