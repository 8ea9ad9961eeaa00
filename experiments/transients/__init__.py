"""How well a plan predicts XLA's temporaries."""
