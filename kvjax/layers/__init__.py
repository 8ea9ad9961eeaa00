"""What attention and models stand on alike: projections and norms."""
