"""Many devices: rules over named axes, and what a compiled step moves."""

from kvjax.mesh.host import host
from kvjax.mesh.rules import Rules, over_heads
from kvjax.sharding.moves import Collective, assert_moves, collectives
from kvjax.sharding.placement import of_cache, of_params

__all__ = [
  'Collective',
  'Rules',
  'assert_moves',
  'collectives',
  'host',
  'of_cache',
  'of_params',
  'over_heads',
]
