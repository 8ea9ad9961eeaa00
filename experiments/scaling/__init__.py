"""How the least time of a decode step grows."""
