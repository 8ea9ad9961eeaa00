"""A model's other two works: reading a prompt, and generating N tokens."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import clock, forms, peers
from experiments.measuring.clock import Entry, Expected, Pace
from experiments.measuring.model import (
  BLOCKWISE,
  TOLERANCE,
  ModelCase,
  attending_kernels,
  filled,
  step_bytes,
)
from kvjax.decoding.allocate import init_cache
from kvjax.decoding.generation import generate
from kvjax.decoding.steps import decode_step, extend, prefill
from kvjax.memory.planning import plan
from kvjax.models.uncached import forward

TURNS = 3  # of such long works


@dataclasses.dataclass(frozen=True)
class PromptCase(ModelCase):
  """A prefill of the context, and the uncached forward of the same tokens.

  Attributes:
    kernels: that take part besides the default one.
  """

  record = 'prefill'

  kernels: Sequence[str] = ()

  def repeats(self, pace: Pace) -> int:
    return min(pace.repeats, TURNS)

  def entries(self, pace: Pace) -> dict[str, Entry]:
    del pace
    config, params = self.config, self.params
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (self.batch, self.context))
    tokens = jnp.asarray(ids, jnp.int32)
    plain = jax.jit(lambda params, ids: forward(config, params, ids)[:, -1])
    make = functools.partial(init_cache, config, self.batch, self.context)

    def cached(kernel=None):
      logits, _ = prefill(config, params, make(), tokens, kernel=kernel)
      return jax.block_until_ready(logits)

    def uncached():
      return np.asarray(plain(params, tokens))

    tolerance = max(1e-3, TOLERANCE[config.dtype])
    size = plan(config, batch_size=1, capacity=1).active_params_bytes
    expected = Expected(uncached(), size, tolerance)

    def theirs():
      return expected.runner(peers.torch_prefill(config, params, ids))

    default = functools.partial(prefill, config)
    default = attending_kernels(default, params, make(), tokens)
    without = attending_kernels(plain, params, tokens)
    entries: dict[str, Entry] = {
      'kvjax': lambda: expected.runner(cached, default),
      'kvjax uncached': lambda: expected.runner(uncached, without),
    }
    for kernel in self.kernels:
      call = functools.partial(cached, forms.kernel_of(kernel))
      entries[f'kvjax {kernel}'] = functools.partial(
        expected.runner, call, kernel
      )
    if not peers.transformers_absence():
      entries['transformers'] = theirs
    return entries


@dataclasses.dataclass(frozen=True)
class GenerateCase(ModelCase):
  """The generation of N tokens, and N single steps.

  Attributes:
    tokens: N, of each row.
  """

  record = 'generate'
  fields = ('batch', 'context', 'tokens')

  tokens: int

  @property
  def decoded(self) -> int:
    return self.batch * self.tokens

  def repeats(self, pace: Pace) -> int:
    del pace
    return TURNS

  def entries(self, pace: Pace) -> dict[str, Entry]:
    del pace
    config, params = self.config, self.params
    shape = (self.batch, config.vocab_size)
    logits = jnp.zeros(shape).at[:, 1].set(1.0)
    cache = filled(self, self.context + self.tokens)
    step = functools.partial(decode_step, config)
    token = jnp.zeros((self.batch,), jnp.int32)
    kernel = attending_kernels(step, params, cache, token)
    size = step_bytes(config, params, cache)
    tolerance = TOLERANCE[config.dtype]

    def generated():
      how = {'donate': False, 'block': self.tokens}
      result = generate(config, params, cache, logits, self.tokens, **how)
      return jax.block_until_ready(result[0])

    def entry(call):
      error = self.shortfall(cache, logits, call())
      return clock.Runner(call, self.tokens * size, kernel, error, tolerance)

    stepped = functools.partial(self.stepped, cache, logits)
    return {
      f'kvjax {kernel} generate': functools.partial(entry, generated),
      f'kvjax {kernel} steps': functools.partial(entry, stepped),
    }

  def stepped(self, cache: Any, logits: jax.Array) -> jax.Array:
    """Returns the tokens of `generate`, by calls that are each waited for."""
    step = functools.partial(decode_step, self.config, self.params)
    tokens = []
    for index in range(self.tokens):
      tokens.append(np.asarray(logits).argmax(axis=1).astype(np.int32))
      # The first step keeps the cache that the next run starts from.
      logits, cache = step(cache, tokens[-1], donate=index > 0)
    jax.block_until_ready(logits)
    return jnp.stack(tokens, axis=1)

  def shortfall(self, cache: Any, logits: Any, tokens: jax.Array) -> float:
    """Returns by how much the logits of tokens fall short of the largest.

    The block loop computes the logits of the same tokens in one call; the
    result is relative to the largest logit. A kernel may exchange two tokens
    whose logits are close, and no others.
    """
    after, _ = extend(self.config, self.params, cache, tokens, kernel=BLOCKWISE)
    before = jnp.concatenate([logits[:, None], after[:, :-1]], axis=1)
    chosen = jnp.take_along_axis(before, tokens[:, :, None], axis=2)[..., 0]
    gap = jnp.where(tokens < 0, jnp.inf, before.max(axis=2) - chosen)
    return float(jnp.max(gap) / jnp.max(jnp.abs(before)))
