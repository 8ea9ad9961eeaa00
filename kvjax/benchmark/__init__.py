"""Decoding against the machine's own limit, and beside the peers."""
