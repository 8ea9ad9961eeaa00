"""Bytes of parameters, caches and encoders, counted from the config."""
