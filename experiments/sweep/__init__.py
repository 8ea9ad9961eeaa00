"""An experiment over a grid of settings, one process a point."""
