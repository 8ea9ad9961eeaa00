"""Text in, text out, from a published checkpoint."""
