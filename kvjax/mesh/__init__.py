"""Meshes of devices: rules over named axes, and what runs shard by shard."""
