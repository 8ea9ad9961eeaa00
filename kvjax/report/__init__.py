"""One writer for every experiment: terminal, JSON lines, plots, one HTML."""
