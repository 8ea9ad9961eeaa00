"""Small models trained on text, for the questions that need them."""
