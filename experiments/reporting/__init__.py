"""Where findings go: terminal, JSON lines, plots, one HTML page."""
