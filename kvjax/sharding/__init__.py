"""Many devices: rules over named axes, and arrays placed by them."""

from kvjax.mesh.host import host
from kvjax.mesh.rules import Rules
from kvjax.sharding.placement import of_cache, of_params

__all__ = ['Rules', 'host', 'of_cache', 'of_params']
