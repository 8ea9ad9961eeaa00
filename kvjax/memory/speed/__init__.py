"""Devices, and the least time that bytes and operations take on them."""
