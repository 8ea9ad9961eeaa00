"""How tightly a plan bounds the memory that XLA needs."""
