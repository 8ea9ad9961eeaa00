"""Evidence by changing values and watching what changes."""
