"""Products of activations with weights, in the form that is fastest there."""
