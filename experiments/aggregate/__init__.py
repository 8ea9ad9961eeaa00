"""Tables for a paper from the records of any experiments."""
