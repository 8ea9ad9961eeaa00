"""Inference on several devices: what a compiled step moves between them."""

from kvjax.sharding.moves import Collective, assert_moves, collectives

__all__ = ['Collective', 'assert_moves', 'collectives']
