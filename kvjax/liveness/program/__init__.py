"""A program as a record of operations on scalars."""
