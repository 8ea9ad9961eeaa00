"""Steps of one model over caches of several kinds, after the same context.

The default kernel of each kind is compared with a dense cache of the same codes
that the block loop reads through the mask which the kind stands for. No mask
says what a kind that observes attention forgets after the first step, nor what
one computes that renumbers tokens: there the block loop reads an equal cache.
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
from kvjax.caches.dense import Dense
from kvjax.decoding.parse import parse_cache
from kvjax.decoding.steps import decode_step
from kvjax.models.uncached import with_visibility

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

    def plain(case: ModelCase, kind: Any, codec: Any) -> clock.Call:
      return step_calls(case, filled(self, slots, kind, codec), BLOCKWISE)

    def entry(kind: Any, codec: Any) -> Runner:
      cache = filled(self, slots, kind, codec)
      size = step_bytes(self.config, self.params, cache)
      step = functools.partial(decode_step, self.config)
      kernel = attending_kernels(step, self.params, cache, self.token)
      bound: Any = cache.layout.kinds()[0]
      call = step_calls(self, cache, None)
      if bound.rotates_queries:
        other = plain(self, kind, codec)
      else:
        other = plain(narrowed(self, bound), Dense(), codec)
      error = clock.difference(call(), other())
      if bound.observes:
        other = plain(self, kind, codec)
        other()
      later = [clock.difference(call(), other()) for _ in range(COMPARED - 1)]
      return Runner(call, size, kernel, max(error, *later), TOLERANCE)

    return {
      f'kvjax {name}': functools.partial(entry, *parse_cache(name))
      for name in self.names
    }


def narrowed(case: ModelCase, kind: Any) -> ModelCase:
  """Returns a case whose queries see what a kind holds after the context."""
  rule = kind.visible_through
  if kind.book_per_layer:  # `filled` leaves it the last `budget - 1` tokens
    rule = lambda visibility: visibility.narrow(kind.budget)
  return dataclasses.replace(case, config=with_visibility(case.config, rule))
