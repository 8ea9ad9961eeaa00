"""What an attention program must remember, and why no query is in it."""
