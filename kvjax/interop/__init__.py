"""For those who live in Flax: weights to kvjax and back, a cache in a module.

A module keeps its weights and its way of life; what it remembers is a kvjax
cache of any kind and codec, a pytree in a variable of the module.
"""

from kvjax.interop.layer import attend, init_cache
from kvjax.interop.weights import from_linen, from_nnx, to_linen, to_nnx

__all__ = (
  'attend',
  'from_linen',
  'from_nnx',
  'init_cache',
  'to_linen',
  'to_nnx',
)
