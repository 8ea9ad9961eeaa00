"""Models: params pytrees and plain functions over frozen configs."""
