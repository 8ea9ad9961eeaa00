"""Steps of one model over caches of several kinds, after the same context.

The default kernel of each kind is compared with the block loop over an equal
cache for several steps: a kind that observes attention then evicts the same
tokens by both.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from experiments.measuring import clock
from experiments.measuring.clock import Entry, Pace, Runner
from experiments.measuring.model import (
  BLOCKWISE,
  ModelCase,
  attending_kernels,
  filled,
  step_bytes,
  step_calls,
)
from kvjax.decoding.parse import parse_cache
from kvjax.decoding.steps import decode_step

TOLERANCE = 1e-4  # relative to the largest logit
COMPARED = 3  # steps


@dataclasses.dataclass(frozen=True)
class CacheCase(ModelCase):
  """A model's step over several caches, by the default kernel of each.

  Attributes:
    names: in the words of `parse_cache`, 'dense' among them.
  """

  record = 'caches'
  base = 'kvjax dense'

  names: Sequence[str]

  @property
  def decoded(self) -> int:
    return self.batch

  def entries(self, pace: Pace) -> dict[str, Entry]:
    slots = self.context + pace.room

    def entry(kind: Any, codec: Any) -> Runner:
      cache = filled(self, slots, kind, codec)
      size = step_bytes(self.config, self.params, cache)
      step = functools.partial(decode_step, self.config)
      kernel = attending_kernels(step, self.params, cache, self.token)
      call = step_calls(self, cache, None)
      plain = step_calls(self, filled(self, slots, kind, codec), BLOCKWISE)
      error = max(clock.difference(call(), plain()) for _ in range(COMPARED))
      return Runner(call, size, kernel, error, TOLERANCE)

    return {
      f'kvjax {name}': functools.partial(entry, *parse_cache(name))
      for name in self.names
    }
