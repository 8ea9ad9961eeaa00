"""Programs whose past folds into a state of fixed size."""
