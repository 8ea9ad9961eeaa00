"""What each attention variant remembers, and what forgetting costs."""
