"""What a compiled program allocates, aliases and copies."""
