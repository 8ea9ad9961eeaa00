"""Seconds a token, cached and uncached, as the context grows."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import kvjax
from experiments.measuring.clock import Runner, queued, race
from experiments.measuring.model import StepCase, filled, step_calls
from kvjax.decoding.allocate import check_sizes


@dataclasses.dataclass(frozen=True)
class Timing:
  """How time is taken.

  Attributes:
    contexts: increasing numbers of tokens, of one row.
    steps: decode steps of one measurement, which is their mean.
    repeats: measurements a context.
  """

  contexts: tuple[int, ...]
  steps: int
  repeats: int

  def __post_init__(self):
    increasing = sorted(set(self.contexts)) == list(self.contexts)
    if not increasing or not self.contexts or self.contexts[0] < 1:
      raise ValueError(
        f'contexts={tuple(self.contexts)} must be positive and increase.'
      )
    check_sizes(**{'pace.steps': self.steps, 'pace.repeats': self.repeats})


def measure_pace(
  timing: Timing, config: kvjax.ModelConfig, params: Any
) -> Iterator[dict[str, Any]]:
  """Yields a record a context: median seconds a token, cached and uncached.

  Cached is a decode step after the context, uncached a forward pass of the
  whole context: without a cache each token takes one. The two take turns.
  """
  # One capacity for all contexts: every cached step is the same program. A race
  # may run each turn a second time, untimed.
  room = timing.contexts[-1] + 2 * timing.repeats * timing.steps
  for context in timing.contexts:
    case = StepCase(config, params, 1, context)
    steps = step_calls(case, filled(case, room), None, timing.steps)
    tokens = jnp.arange(context, dtype=jnp.int32)[None, :] % config.vocab_size
    forward = functools.partial(kvjax.forward, config, params, tokens)
    runners = {
      'cached': Runner(steps, 0, times=timing.steps),
      'uncached': Runner(queued(forward, 1, jax.block_until_ready), 0),
    }
    results = race(runners, timing.repeats)
    seconds = {name: result['seconds'] for name, result in results.items()}
    yield {'record': 'pace', 'context': context, **seconds}
