"""Training small models on text, and asking what they predict."""
